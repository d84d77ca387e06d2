#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs inside a guest: finishes what virtme-ng's init leaves undone, runs the
# command and hands its output and exit status to the host.
#
# $1 is a folder shared with the host. In it: "command", a script to run;
# "output", "trouble" and "status", written here; "started", made just before the
# command.
# The virtio ports that virtme-ng offers for this are only there with udev; with
# it, /dev/stdout and /dev/stderr lead to them and are put right here.
#
# $2 is the number of seconds after which the guest ends in any case, should the
# host's side have been killed.
#
# $3 is where the host's root is a second time, and $4 the repository. The first
# time it is without a cache, so that each import asks the host for everything.

shared=$1
limit=$2
cached=$3
repository=$4

fail() {
	echo "guest: $1" >>"$shared/output"
	exit 1
}

(sleep "$limit" && echo o >/proc/sysrq-trigger) &

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf ||
	fail "cannot mount bpffs"
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing ||
	fail "cannot mount tracefs"
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup ||
	fail "cannot mount cgroup v2"
[ -e /sys/fs/fuse/connections ] || modprobe fuse ||
	fail "cannot load the fuse module; is kmod installed?"

tag=$(sed -n "s|^\([^ ]*\) $cached 9p .*|\1|p" /proc/mounts)
umount "$cached" && mount -t 9p "$tag" "$cached" \
	-o ro,trans=virtio,version=9p2000.L,access=any,msize=512000,cache=loose ||
	fail "cannot mount the host's root with a cache"
for directory in /usr/bin /usr/sbin /usr/share /usr/include /usr/lib/*/ "$repository"; do
	[ "$directory" = /usr/lib/modules/ ] && continue # virtme-ng's own
	mount --bind "$cached$directory" "$directory" ||
		fail "cannot mount $directory with a cache"
done

ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

# The host's file system is read-only, but programs write to their home.
export HOME=/run/home
mkdir -p "$HOME" || fail "cannot make $HOME"

# What a command had printed before it hung should be seen.
export PYTHONUNBUFFERED=1

# A pipe rather than the file itself, which a command could truncate by opening
# /dev/stdout for writing.
mkfifo /run/output || fail "cannot make /run/output"
cat /run/output >"$shared/output" &
reader=$!

: >"$shared/started"
sh "$shared/command" </dev/null >/run/output 2>&1
status=$?

# Processes that the command leaves behind may hold the pipe open for ever.
tries=50
while kill -0 "$reader" 2>/dev/null && [ "$tries" -gt 0 ]; do
	sleep 0.1
	tries=$((tries - 1))
done

# What the kernel's checks found and the console, the host's only view of the log,
# does not show: leaks, and checks that gave up. An object is not suspected until it
# is 5 seconds old, and unreferenced when it was scanned for twice.
look_for_trouble() {
	leaks=/sys/kernel/debug/kmemleak
	mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug ||
		echo "WARNING: cannot mount debugfs, so nobody looked for leaks"
	if [ -e "$leaks" ]; then
		sleep 6
		echo scan >"$leaks" && echo scan >"$leaks" ||
			echo "kmemleak: Kernel memory leak detector disabled"
		head -n 200 "$leaks"
	fi
	[ ! -e /proc/lockdep_stats ] || grep -q 'debug_locks: *1$' /proc/lockdep_stats ||
		echo "INFO: lockdep is turned off."
}
look_for_trouble >"$shared/trouble" 2>&1

echo "$status" >"$shared/status.new" && mv "$shared/status.new" "$shared/status"

# Without a sync, which waits for ever on a FUSE mount that nobody serves any
# more; nothing in the guest is worth keeping.
echo o >/proc/sysrq-trigger
sleep 60
