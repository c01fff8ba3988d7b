# shellcheck shell=sh
# Sourced by fresh: makes a fresh machine, runs commands there, and judges their results. It uses
# fresh's variables here, checkout, suite, archive, work, logs and table.
# shellcheck disable=SC2154 # fresh sets these variables

# command_of WHAT: the README's command, or the job of CI.
command_of() {
	case $1 in
	run | refuse) echo ./scripts/run ;;
	vm) echo ./scripts/run vm -- physview compare self ;;
	host) echo ./scripts/test --host ;;
	test) echo ./scripts/test ;;
	matrix)
		echo env "PHYSVIEW_REQUIRE=vm,index,cc$(echo ",$PHYSVIEW_KERNELS" | sed 's/,/,kernel-/g')" \
			./scripts/test tests/test_matrix.py
		;;
	debug) echo ./scripts/test --debug-kernel ;;
	arm64) echo ./scripts/test --arm64 arm64 arm64-16k small ;;
	job-user) echo scripts/ci/user ;;
	job-root) echo scripts/ci/root ;;
	job-packages) echo scripts/ci/packages ;;
	*) return 1 ;;
	esac
}

# inside WHO COMMAND…: runs a command on the machine, as root or as the user.
inside() {
	as=$1
	shift
	if [ "$as" = root ]; then
		# shellcheck disable=SC2086 # a list of options
		"$here/in-root" $binds "$machine" env -i HOME=/root USER=root \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			sh -c '. /.environment && exec "$@"' - "$@"
	else
		# A user's PATH has no sbin.
		# shellcheck disable=SC2086
		"$here/in-root" $binds "$machine" setpriv --reuid=1000 --regid=1000 --clear-groups \
			env -i HOME=/home/dev USER=dev PATH=/usr/local/bin:/usr/bin:/bin \
			sh -c '. /.environment && exec "$@"' - "$@"
	fi
}

# install NAME…: packages, as root does it.
install() {
	inside root sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
		--no-install-recommends "$@"' - "$@" >"$logs/install.log" 2>&1 ||
		fail "could not install $* on a fresh $suite: $(tail -n 1 "$logs/install.log")"
}

# passed_on: the names of this machine's variables that configure the network and VMs.
# (PHYSVIEW_REQUIRE is for the machine outside; "vm" sets the one for inside.)
passed_on() {
	env | sed -n 's/^\([A-Za-z_]*\)=.*/\1/p' |
		grep -E '^(PIP_.*|SSL_CERT_FILE|[a-z]*_proxy|[A-Z]*_PROXY|PHYSVIEW_(VM_ACCEL|KERNELS))$'
}

# named_paths: the files and folders that pip's configuration and SSL_CERT_FILE name. (uv reads that.)
named_paths() {
	{
		python3 -m pip config list 2>/dev/null | sed -n "s/^[^=]*='\(.*\)'$/\1/p" | tr ' ' '\n'
		echo "${SSL_CERT_FILE-}"
	} | sed -n 's,^file://,,; /^\//p' | sort -u
}

# configure_network: names are resolved, and pip reaches its index, as on this machine. (make-root
# has done the same for apt.)
configure_network() {
	for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/xdg/pip/pip.conf; do
		[ ! -e "$path" ] || command install -D -m 644 "$path" "$machine$path"
	done
	binds=
	for path in $(named_paths); do
		if [ -d "$path" ]; then
			binds="$binds --bind $path"
		elif [ -f "$path" ]; then
			command install -D -m 644 "$path" "$machine$path"
		fi
	done
	# This machine's additional certificates: the package ca-certificates adds them when it is installed.
	mkdir -p "$machine/usr/local/share"
	[ ! -d /usr/local/share/ca-certificates ] ||
		cp -R /usr/local/share/ca-certificates "$machine/usr/local/share"
	for name in $(passed_on); do
		printf "export %s='%s'\n" "$name" "$(printenv "$name" | sed "s/'/'\\\\''/g")"
	done >"$machine/.environment"
}

# new_machine WHO: unpacks a root into $machine, with a checkout in $folder that is $user's.
new_machine() {
	who=$1
	machine=$work/$who
	say "a fresh $suite, $who"
	mkdir "$machine"
	tar -xf "$archive" -C "$machine"
	# The machine is thrown away: dpkg need not wait until each file is on the disk.
	echo force-unsafe-io >"$machine/etc/dpkg/dpkg.cfg.d/unsafe-io"
	configure_network
	user=root
	prefix=
	folder=/root/physview
	case $who in
	sudo | user)
		user=dev
		folder=/home/dev/physview
		useradd -R "$machine" -u 1000 -U -d /home/dev -s /bin/sh dev
		command install -d -m 750 -o 1000 -g 1000 "$machine/home/dev"
		;;
	esac
	# git reads no repository of another user, so its owner clones, where that is possible.
	clone=$(as_owner mktemp -d)
	as_owner git clone -q --no-hardlinks "$checkout" "$clone/physview"
	mv "$clone/physview" "$machine$folder"
	rmdir "$clone"
	chown -R "$(stat -c %u:%g "$machine${folder%/*}")" "$machine$folder"
	case $who in
	sudo)
		prefix=sudo
		install sudo
		{
			echo 'dev ALL=(ALL) NOPASSWD: ALL'
			echo "Defaults env_keep += \"$(passed_on | tr '\n' ' ')\""
		} >"$machine/etc/sudoers.d/dev"
		;;
	sdist)
		install python3-venv
		# shellcheck disable=SC2016 # for the shell in there
		inside root sh -c 'set -e
			python3 -m venv /tmp/build
			/tmp/build/bin/pip install -q build
			cd "$0"
			/tmp/build/bin/python -m build --sdist -o /tmp/sdist .
			rm -rf "$0"
			mkdir "$0"
			tar -xf /tmp/sdist/*.tar.gz -C "$0" --strip-components=1
			rm -rf /tmp/build /tmp/sdist' "$folder" >"$logs/sdist.log" 2>&1 ||
			fail "could not build the sdist on a fresh $suite: $(tail -n 1 "$logs/sdist.log")"
		;;
	esac
}

# run_once LOG COMMAND…: runs a command as a person types it, for at most an hour (four with many VMs).
run_once() {
	log=$1
	shift
	hours=1
	case $what in test | matrix | debug) hours=4 ;; esac
	code=0
	# shellcheck disable=SC2016,SC2086 # for the shell in there; sudo or nothing
	inside "$user" timeout -k 30 ${hours}h sh -c 'cd "$0" && exec "$@"' "$folder" $prefix "$@" \
		>>"$log" 2>&1 || code=$?
}

# is_right WHAT LOG: whether exit code $code and the output are as expected.
is_right() {
	case $1,$who in
	run,user) [ "$code" -eq 1 ] && [ "$(grep -c -e '-> UNKNOWN$' "$2")" -gt 0 ] ;;
	refuse,*) [ "$code" -eq 1 ] && tail -n 1 "$2" | grep -q 'too old' && return ;;
	*) [ "$code" -eq 0 ] ;;
	esac || return 1
	# The report has a line each for 40 addresses.
	case $1 in run) [ "$(grep -c ':  0x[0-9a-f]* -> ' "$2")" -eq 40 ] ;; esac
}

# remedy LOG: the packages that physview's last message says to install. (Reasons of skipped tests are
# not such messages.)
remedy() {
	tail -n 3 "$1" | sed -n 's/^physview: .*apt-get install \([a-z0-9.+ -]*\).*/\1/p' | tail -n 1
}

# try WHAT: runs it, and adds a line to the table.
try() {
	what=$1
	command=$(command_of "$what")
	log=$logs/$who-$what.log
	say "$who: ${prefix:+$prefix }$command"
	start=$(date +%s)
	: >"$log"
	installed=
	while :; do
		# shellcheck disable=SC2086 # words
		run_once "$log" $command
		! is_right "$what" "$log" || break
		# For a user alone root does what the message says, each thing once.
		packages=$(remedy "$log")
		case $who,$what,$installed in
		user,*,*"$packages"*) break ;;
		user,*) ;;
		*) break ;;
		esac
		[ -n "$packages" ] || break
		# shellcheck disable=SC2086
		install $packages
		installed="$installed${installed:+, }$packages"
		echo "# root has installed $packages" >>"$log"
	done
	minutes=$(awk "BEGIN { printf \"%.1f\", ($(date +%s) - $start) / 60 }")
	tests=$(grep -oE '[0-9]+ (passed|failed)[a-z0-9, ]* in ' "$log" | sed 's/ in $//' |
		paste -s -d ';' | sed 's/;/; /g')
	result=ok
	is_right "$what" "$log" || {
		result="FAILED, exit code $code"
		sed "s/^/$who $what: /" "$log" | tail -n 60 >&2
	}
	result="$result${tests:+: $tests}${installed:+ (root installed $installed)}"
	printf '%s\t%s\t%s\t%s\t%s\n' "$suite" "$who" "$command" "$result" "$minutes" >>"$table"
	case $result in ok*) ;; *) return 1 ;; esac
}

# check_owners: root has left nothing of its own in a user's home.
check_owners() {
	[ "$user" != root ] || return 0
	left=$(find "$machine/home/dev" ! -user 1000 -printf '%P\n' | head -n 3 | paste -s -d ' ')
	[ -n "$left" ] || return 0
	say "$who: root has left $left in the user's home"
	printf '%s\t%s\t%s\t%s\t%s\n' "$suite" "$who" "whose files" "FAILED: root's are $left" - \
		>>"$table"
	return 1
}

# expand_table: columns as wide as their widest, from lines with tabs.
expand_table() {
	awk -F '\t' '{
		for (i = 1; i <= NF; i++) {
			cell[NR, i] = $i
			if (length($i) > width[i]) width[i] = length($i)
		}
		columns = NF
	}
	END {
		for (row = 1; row <= NR; row++) {
			line = ""
			for (i = 1; i <= columns; i++)
				line = line sprintf("%-" (width[i] + 2) "s", cell[row, i])
			sub(/ +$/, "", line)
			print line
		}
	}'
}
