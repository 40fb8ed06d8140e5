#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by `meson install`: man pages and completions, which mpklink itself writes. $1: mpklink
set -e
share=$MESON_INSTALL_DESTDIR_PREFIX/share
"$1" man --list >/dev/null 2>&1 || exit 0 # a build without these commands

mkdir -p "$share/man" "$share/bash-completion/completions" "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d"
"$1" man --directory "$share/man"
"$1" completion bash >"$share/bash-completion/completions/mpklink"
"$1" completion zsh >"$share/zsh/vendor-completions/_mpklink"
"$1" completion fish >"$share/fish/vendor_completions.d/mpklink.fish"
