#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes what is handed out. scripts/package.sh [deb|tarball|all] [--test] [--no-install] [--out DIRECTORY]
#   deb      libmpklink, mpklink-tools and libmpklink-dev, checked by lintian
#   tarball  a folder that works wherever it is unpacked (bin/, lib/, share/)
#   --test   also installs and removes the packages on this machine, and uses the tarball (tests/integration/package_test.py); needs root
#   --no-install  do not install what is missing
#   --out    where to put it, instead of build/package
set -euo pipefail
cd "$(dirname "$0")/.."

what=all
run_tests=0
install=1
out=${MPKLINK_BUILD:-$PWD/build}/package
while [ $# -gt 0 ]; do
  case "$1" in
    deb | tarball | all) what=$1 ;;
    --test) run_tests=1 ;;
    --no-install) install=0 ;;
    --out) out=${2:?--out needs a directory; see scripts/package.sh --help}; shift ;;
    -h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "package: unknown argument $1; see scripts/package.sh --help" >&2; exit 2 ;;
  esac
  shift
done

if [ "$install" = 1 ]; then scripts/setup.sh --quiet --package; fi
version=$(sed -n "s/^ *version: '\(.*\)',/\1/p" meson.build)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What git knows, as it is now; without git (a source tarball) everything but build directories.
copy_source() {
  mkdir "$1"
  if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard | tar --null -T - --ignore-failed-read -cf - | tar -xf - -C "$1"
  else
    tar -cf - --exclude='./build*' . | tar -xf - -C "$1"
  fi
}

build_debs() {
  local packaged
  packaged=$(sed -n '1s/.*(\(.*\)).*/\1/p' deploy/debian/changelog)
  if [ "$packaged" != "$version" ]; then
    echo "package: meson.build says $version and deploy/debian/changelog $packaged; make them the same" >&2
    exit 1
  fi
  copy_source "$work/libmpklink-$version"
  mv "$work/libmpklink-$version/deploy/debian" "$work/libmpklink-$version/debian"
  if ! (cd "$work/libmpklink-$version" && dpkg-buildpackage -b -us -uc -rfakeroot) >"$work/log" 2>&1; then
    tail -n 40 "$work/log" >&2
    echo 'package: dpkg-buildpackage failed; what is missing is installed by scripts/setup.sh --package' >&2
    exit 1
  fi
  rm -f "$out"/*.deb "$out"/*.changes "$out"/*.buildinfo
  mv "$work"/*.deb "$work"/*.changes "$work"/*.buildinfo "$out/"
  lintian --fail-on error,warning --allow-root "$out"/*.changes
}

# The tools with their C++ library inside: they then need glibc only, of any distribution that is new enough.
build_tarball() {
  local name=mpklink-$version-linux-x86_64 build=build-package
  [ -f "$build/build.ninja" ] || meson setup "$build" --prefix=/ --libdir=lib -Dtests=false -Dpkgconfig.relocatable=true \
    -Dcpp_link_args='-static-libstdc++ -static-libgcc' >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
  meson install -C "$build" --strip --destdir "$work/$name" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
  cp README.md LICENSE "$work/$name/"
  tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
    -czf "$out/$name.tar.gz" "$name"
}

case $what in deb | all) build_debs ;; esac
case $what in tarball | all) build_tarball ;; esac
ls -l "$out"
if [ "$run_tests" = 1 ]; then
  MPKLINK_PACKAGES=$out exec /usr/bin/python3 -m pytest -q -p no:cacheprovider tests/integration/package_test.py
fi
