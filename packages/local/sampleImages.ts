// Images to try things with, built here and now from this machine's own busybox: no image is downloaded from anywhere.
import { pushImage } from '@cloister/image/pushImage.ts';
import { buildBusyboxImage } from '@cloister/image/testImage.ts';

const HELLO = `#!/bin/sh
echo "Hello from a machine of my own."
echo "  kernel    $(uname -sr)"
echo "  memory    $(awk '/MemTotal/ { print int($2 / 1024) " MiB" }' /proc/meminfo)"
echo "  process 1 $(cat /proc/1/comm)"
echo "  network   $(ls /sys/class/net | tr '\\n' ' ')"
echo "  user      $(id -u), with capabilities $(awk '/CapEff/ { print $2 }' /proc/self/status)"
`;

const FOREVER = `#!/bin/sh
# Minds no signal, and stops for nobody.
trap '' TERM INT HUP
echo "I run for ever."
while :; do sleep 60; done
`;

/** Pushes hello, forever and busybox to the registry at `host`. */
export async function pushSampleImages(host: string): Promise<void> {
  const samples = {
    busybox: buildBusyboxImage(),
    hello: buildBusyboxImage({
      config: { Cmd: ['/bin/hello'] },
      files: [{ path: 'bin/hello', mode: 0o755, content: HELLO }],
    }),
    forever: buildBusyboxImage({
      config: { Cmd: ['/bin/forever'] },
      files: [{ path: 'bin/forever', mode: 0o755, content: FOREVER }],
    }),
  };
  for (const [name, image] of Object.entries(samples)) await pushImage({ host }, image, name, 'latest');
}
