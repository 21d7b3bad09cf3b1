# Everything a newcomer needs: make demo, make test. `make help` lists the rest.
SHELL := /bin/bash
NODE := node_modules/.bin/node
PACKAGES := containerd runc qemu-system-x86 qemu-system-data erofs-utils squashfs-tools e2fsprogs util-linux mount coreutils findutils \
  docker-registry apache2-utils openssl busybox-static strace gcc libc6-dev binutils lz4 cpio libfaketime python3

.PHONY: help check test guest deps debian-packages demo up down clean bench-start bench-store
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

deps: node_modules/.package-lock.json debian-packages ## Install what is missing

# Not `npm ci`: it asks the lock file for optional packages of other platforms, which not every registry has.
node_modules/.package-lock.json: package.json package-lock.json $(wildcard packages/*/package.json)
	npm install --no-save --no-audit --no-fund --loglevel=error
	@touch $@

debian-packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing Debian packages:" $$missing; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

guest: deps ## Build the guest: kernel and initramfs
	@$(MAKE) --no-print-directory -q -C guest OUT=../build/guest || $(MAKE) --no-print-directory -C guest OUT=../build/guest

demo: guest ## A cluster: started, shown and ended, in a few seconds
	@$(NODE) packages/local/demo.ts

up: guest ## A cluster on this machine that stays
	@$(NODE) packages/local/up.ts

down: node_modules/.package-lock.json ## Ends the cluster of "make up"
	@$(NODE) packages/local/down.ts

clean: node_modules/.package-lock.json ## Ends the cluster, and forgets what it and the demo kept
	@$(NODE) packages/local/down.ts --forget

bench-start: guest ## How long a start takes, beside a bare VMM and a bare container
	@$(NODE) bench/start.ts

bench-store: guest ## How fast the embedded store is
	@$(NODE) bench/store.ts

check: node_modules/.package-lock.json ## Format, lint and types
	node_modules/.bin/biome ci --colors=off --error-on-warnings .
	node_modules/.bin/tsc -p .

test: guest ## Every test
	$(NODE) --test --test-concurrency=1 --test-timeout=600000 "packages/**/*.test.ts" "guest/*.test.ts" "test/**/*.test.ts"
