#!/bin/bash
# mklarge.sh LAYOUT: tag "large" in LAYOUT, made from its tag "compiler": more than
# 1.5 GB of files in eight layers, for measurements.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
has_tag "$1" large && exit 0

begin_layers "$1" compiler large
for packages in 'nodejs npm' golang 'llvm-14-dev libclang-14-dev'; do
	step "${packages%% *}" "$install $packages; $clean"
done
finish_layers
