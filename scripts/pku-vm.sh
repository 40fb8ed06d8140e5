#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs a command on an emulated machine that has protection keys. scripts/pku-vm.sh [options] -- command…
#   --kernel 6.1|6.12  Debian 12's cloud kernel (the default), or the one of its backports
#   --cpu MODEL        qemu's CPU model, default max; max,-pku: a CPU without protection keys
#   --append ARGS      kernel arguments; nopku: a CPU that has the keys, a kernel that does not use them
#   --timeout S        seconds for the whole run of the machine, default 180
#   --add PATH         a file (with its shared libraries) or a folder to take along; may be given again
#   --fetch            only fetch what is missing for this kernel
# The command runs as root, in this folder, with the build, scripts/ and tests/, nginx, wrk, curl and busybox at the paths they have here.
# Its output is ours, its exit code too. 124: the machine hung; 125: it died without a result, twice; 2: no machine to be had.
set -u
cd "$(dirname "$0")/.." || exit 2

build=${MPKLINK_BUILD:-$PWD/build}
kernel=6.1 cpu=max append='' seconds=180 fetch_only=0
extra=()
while [ $# -gt 0 ]; do
  case "$1" in
    --kernel) kernel=${2:?}; shift ;;
    --cpu) cpu=${2:?}; shift ;;
    --append) append=${2:?}; shift ;;
    --timeout) seconds=${2:?}; shift ;;
    --add) extra+=("${2:?}"); shift ;;
    --fetch) fetch_only=1 ;;
    --) shift; break ;;
    *) echo "unknown option $1; known: --kernel --cpu --append --timeout --add --fetch -- command" >&2; exit 2 ;;
  esac
  shift
done

say() { printf 'pku-vm: %s\n' "$*" >&2; }
refuse() { say "$*"; exit 2; }

case "$kernel" in
  6.1) suite=bookworm ;;
  6.12) suite=bookworm-backports ;;
  *) refuse "no kernel $kernel; known: 6.1 6.12" ;;
esac
[ $# -gt 0 ] || [ "$fetch_only" = 1 ] || refuse 'what shall it run? -- command…'
[ -f "$build/preload/libmpklink.so" ] || [ "$fetch_only" = 1 ] || refuse "no build in $build"

# ---- fetching: packages are unpacked below the build folder, never installed -----------------------------------------------

mkdir -p "$build/pku-vm" || exit 2
cache=$(cd "$build/pku-vm" && pwd)

# apt with lists of its own, of one suite: the user's may be old, empty, without backports, or not ours to renew.
use_suite() {
  local state=$cache/apt-$1 mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
  [ -n "$mirror" ] || refuse "apt's sources do not name Debian 12 (bookworm), whose packages are needed"
  mkdir -p "$state/lists/partial" "$state/cache"
  echo "deb $mirror $1 main" >"$state/sources.list"
  cat >"$state/apt.conf" <<CONF
Dir::State::lists "$state/lists";
Dir::Cache "$state/cache";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "-";
APT::Update::Error-Mode "any";
APT::Sandbox::User "";
CONF
  export APT_CONFIG=$state/apt.conf
  apt-get -q update >"$state/log" 2>&1 || { tail -n 3 "$state/log" >&2; refuse "apt's mirror does not give $1, which kernel $kernel needs"; }
}

# fetch PACKAGE FOLDER: complete, or not there.
fetch() {
  local work
  work=$(mktemp -d "$cache/fetch.XXXXXX") || exit 2
  if (cd "$work" && apt-get -q download "$1") >"$work/log" 2>&1 && dpkg -x "$work"/*.deb "$work/root"; then
    mv "$work/root" "$2"
  else
    tail -n 3 "$work/log" >&2
  fi
  rm -rf "$work"
  [ -d "$2" ] || refuse "the package $1 could not be fetched"
}

fetch_missing() (
  flock 9
  if [ ! -d "$cache/busybox" ]; then
    use_suite bookworm
    fetch busybox-static "$cache/busybox"
  fi
  if [ ! -d "$cache/linux-$kernel" ]; then
    use_suite "$suite"
    package=$(apt-cache pkgnames "linux-image-$kernel." | grep -E '[0-9]-cloud-amd64$|\+deb12-cloud-amd64$' | sort -V | tail -n 1)
    [ -n "$package" ] || refuse "$suite has no cloud kernel $kernel"
    fetch "$package" "$cache/linux-$kernel"
    # Most of its 100 MB. What stays: by these the kernel says who owns a socket; the library upgrades nothing without.
    find "$cache/linux-$kernel/lib/modules" -type f ! -name 'inet_diag.ko*' ! -name 'tcp_diag.ko*' -delete
  fi
  rm -rf "$cache"/apt-*
) 9>"$cache/lock"

command -v qemu-system-x86_64 >/dev/null || scripts/setup.sh --quiet || refuse 'qemu-system-x86_64 is missing'
fetch_missing || exit 2
[ "$fetch_only" = 0 ] || exit 0

# ---- the machine's files: an initramfs, for Debian's cloud kernels have no shared folders and their disks are modules ----------

build=$(cd "$build" && pwd)
busybox=$(echo "$cache"/busybox/*bin/busybox)
[ -x "$busybox" ] || refuse "no busybox in $cache/busybox"
work=$(mktemp -d) || exit 2
vm=
trap 'rm -rf "$work"' EXIT
trap '[ -z "$vm" ] || kill "$vm"; exit 143' INT TERM HUP
root=$work/root

# Files and folders at the paths they have here, with the shared libraries of the files.
take() {
  local path
  for path in "$@"; do
    mkdir -p "$root${path%/*}"
    cp -RL --preserve=mode "$path" "$root${path%/*}/" || refuse "cannot take $path along"
  done
  ldd "$@" 2>/dev/null | sed -nE 's#^\t(.* => )?(/[^ ]+) .*#\2#p' | sort -u | while read -r path; do
    mkdir -p "$root${path%/*}"
    [ -e "$root$path" ] || cp -L "$path" "$root$path"
  done
}

pack() {
  local name path
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,proc,sys,dev,run,root,tmp,etc,var/log/nginx,var/lib/nginx}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  cp "$busybox" "$root/bin/busybox"
  printf '%s\n' root:x:0:0::/root:/bin/sh www-data:x:33:33::/:/bin/sh nobody:x:65534:65534::/:/bin/sh >"$root/etc/passwd"
  printf '%s\n' root:x:0: www-data:x:33: nogroup:x:65534: >"$root/etc/group"
  echo '127.0.0.1 localhost' >"$root/etc/hosts"

  for name in nginx wrk curl; do
    path=$(PATH=$PATH:/usr/sbin:/sbin type -P "$name") || refuse "$name is missing: run scripts/setup.sh"
    take "$path"
  done
  take "$PWD/scripts" "$PWD/tests" "$build/preload/libmpklink.so" "$build/tools/mpklink" "$build/tests/unit_tests"
  for path in "$build"/tests/programs/*; do
    [ ! -f "$path" ] || take "$path"
  done
  for path in "${extra[@]}"; do take "$(realpath -s "$path")"; done

  for name in inet_diag tcp_diag; do
    path=$(find "$cache/linux-$kernel/lib/modules" -name "$name.ko*")
    case "$path" in
      *.ko) cp "$path" "$root/" ;;
      *.ko.xz) xz -dc "$path" >"$root/$name.ko" || exit 2 ;;
      *) refuse "no module $name in $cache/linux-$kernel" ;;
    esac
  done

  # Single quotes alone: busybox's shell reads this.
  { echo '#!/bin/sh'; printf "exec"; printf " '%s'" "${@//\'/\'\\\'\'}"; echo; } >"$root/command"
  # Kernel messages go to the first serial line, the command's output to the second, its exit code to the third.
  cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
chmod 1777 /tmp /dev/shm
ip link set lo up
insmod /inet_diag.ko
insmod /tcp_diag.ko
stty -F /dev/ttyS1 raw
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 MPKLINK_BUILD='$build'
cd '$PWD'
/command </dev/null >/dev/ttyS1 2>&1
echo \$? >/dev/ttyS2
poweroff -f
INIT
  chmod 755 "$root/init" "$root/command"
  # Other users than root must get in.
  chmod -R a+rX "$root"
  (cd "$root" && find . | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"
  rm -rf "$root"
}

# ---- the machine ---------------------------------------------------------------------------------------------------------------

# thread=single: with a thread per CPU the emulated kernel dies now and then while it patches itself. no_timer_check: on a busy host the
# kernel counts too few ticks in its first moments and gives up on its timer. -cx16: with cmpxchg16b kernel 6.12 mostly died at its start, of
# impossible flags (qemu 7.2); without, it falls back to a lock.
run_machine() {
  rm -f "$work/code"
  timeout --foreground -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=single -cpu "$cpu,-cx16" -smp 2 -m 1024 -nodefaults -display none -no-reboot \
    -kernel "$cache/linux-$kernel"/boot/vmlinuz-* -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1 oops=panic no_timer_check $append" \
    -serial "file:$work/console" -serial stdio -serial "file:$work/code" </dev/null &
  vm=$!
  wait "$vm"
  local code=$?
  vm=
  case "$code" in
    124 | 137) code=124; say "the machine hung: no result within $seconds s" ;;
    *) code=$(tr -d '\r\n' <"$work/code" 2>/dev/null); code=${code:-125} ;;
  esac
  case "$code" in 124 | 125) tail -n 20 "$work/console" >&2 ;; esac
  return "$code"
}

pack "$@"
run_machine
code=$?
if [ "$code" = 125 ]; then
  say 'the machine died without a result; once more'
  run_machine
  code=$?
  [ "$code" != 125 ] || say 'the machine died again'
fi
exit "$code"
