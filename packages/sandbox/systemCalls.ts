// The system calls that QEMU's microvm needs, and nothing else. Got by tracing machines that boot, write to their disk,
// discard from it, are connected to, disconnected from and ended; what only the runtime needs between loading the
// filter and executing QEMU is in a group of its own.

/** Names written as one text: shorter to read than a name a line. */
const words = (text: string): string[] => text.trim().split(/\s+/);

/** With one comment per group: why a call is needed. Each group is sorted. */
export const QEMU_SYSTEM_CALLS: readonly string[] = [
  // starting: the dynamic loader, the C library, and QEMU looking at its files and its host
  ...words(`
    access arch_prctl brk execve fchdir getdents64 getegid geteuid getgid getuid newfstatat openat
    pread64 prlimit64 readlink set_tid_address statfs sysinfo uname unlink
  `),
  // QEMU's own filter (-sandbox on), a second one over this
  ...words(`
    prctl seccomp
  `),
  // memory of the machine and of translated code
  ...words(`
    get_mempolicy madvise memfd_create mmap mprotect mremap munmap set_mempolicy
  `),
  // disks
  ...words(`
    close fallocate fcntl fdatasync fstat fsync ftruncate lseek preadv pwrite64 pwritev read readv
    write writev
  `),
  // the sockets that it inherited: QEMU accepts, it never makes one and never connects
  ...words(`
    accept4 getpeername getsockname getsockopt listen recvfrom recvmsg sendmsg sendto setsockopt
    shutdown
  `),
  // threads: one for each virtual CPU, and for disk requests (only threads: see jailBundle.ts)
  ...words(`
    clone clone3 exit exit_group futex getpid gettid restart_syscall rseq sched_getaffinity sched_yield
    set_robust_list tgkill
  `),
  // the main loop: waiting, time, signals, wake-ups between threads
  ...words(`
    clock_getres clock_gettime clock_nanosleep eventfd2 getrandom gettimeofday nanosleep pipe2 poll
    ppoll rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack signalfd4 timerfd_create timerfd_settime
  `),
];

/** The runtime, written in Go, waits for its start signal with the filter already on. */
export const RUNTIME_SYSTEM_CALLS: readonly string[] = [
  'fstatfs',
  'epoll_create1',
  'epoll_ctl',
  'epoll_pwait',
  'sched_getaffinity',
];

/** KVM is driven through ioctls, and its virtual CPUs are kicked out of the guest by a signal. */
export const KVM_SYSTEM_CALLS: readonly string[] = ['ioctl', 'rt_sigpending', 'rt_sigtimedwait'];
