# In the lab: one guest after the other, and a table of what they took. See scripts/bench-linux.sh.
here=$(readlink -f "$(dirname "$0")")
mkdir -p /tmp/vm && cd /tmp/vm || exit 1
"$here/../../scripts/lab-initrd.sh" initrd "$INSTAR_VSOCK_TOOL" <"$here/bench-guest.sh" || exit 1
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
T=/sys/kernel/tracing
[ -d $T/events/kvm ] || {
	echo "the lab's kernel has no tracepoints of KVM" >&2
	exit 1
}
ip tuntap add dev tap0 mode tap && ip addr add 10.9.8.1/24 dev tap0 && ip link set tap0 up
dd if=/dev/urandom of=disk.raw bs=1M count=256 2>/dev/null

# part NAME: whether it is to be measured.
part() {
	case " $INSTAR_PARTS " in
	*" $1 "*) ;;
	*) false ;;
	esac
}

# vmm NAME DO: runs the machine; its console is on standard output.
vmm() {
	cmdline="console=ttyS0 quiet panic=-1 do=$2"
	qemu() {
		qemu-system-x86_64 -accel kvm -cpu host -m 128M -nodefaults -no-user-config -display none -serial stdio -no-reboot \
			-kernel "$LAB/guest/vmlinuz" -initrd initrd -append "$cmdline" -drive "if=none,id=d,$disk" -netdev "$netdev" "$@" $more
	}
	own='--disk disk.raw' disk=file=disk.raw,format=raw more=
	[ "$2" != qcow2 ] || {
		own='--disk disk.qcow2,format=qcow2 --disk over.qcow2,format=qcow2' disk=file=disk.qcow2,format=qcow2
		more='-drive if=none,id=over,file=over.qcow2,format=qcow2 -device virtio-blk-pci,drive=over'
	}
	net=tap:tap0 netdev=tap,id=n,ifname=tap0,script=no,downscript=no
	[ "$2" != user ] || {
		net='user --allow host --forward tcp:5004:5004'
		netdev=user,id=n,hostfwd=tcp:127.0.0.1:5004-:5004
	}
	case $1 in
	instar)
		# shellcheck disable=SC2086 # Options of their own.
		"$INSTAR_BIN" run --kernel "$LAB/guest/vmlinuz" --initrd initrd --memory 128M --cmdline "$cmdline" \
			$own --net $net
		;;
	pc) qemu -M pc -device virtio-blk-pci,drive=d -device virtio-net-pci,netdev=n ;;
	microvm) qemu -M microvm,acpi=on,rtc=on,pcie=on -device virtio-blk-pci,drive=d -device virtio-net-pci,netdev=n ;;
	esac </dev/null
}

# Private memory of the processes whose command line has these words, without mappings as large as the guest's memory.
private() {
	for pid in $(pgrep -f "^[^ ]*(instar|qemu-system)[^ ]* .*$1"); do
		awk '/^[0-9a-f]+-[0-9a-f]+ / { size = 0 }
			/^Size:/ { size = $2 }
			/^Private_(Clean|Dirty):/ { if (size < 65536) sum += $2 }
			END { print sum + 0 }' "/proc/$pid/smaps"
	done | awk '{ sum += $1 } END { print sum + 0 }'
}

# The mark: what init writes to the serial line first.
mark='port == 0x3f8 && val == 5 && rw == 1'

# One boot with tracepoints: start, boot (ms) and exits.
boot() {
	echo 0 >$T/tracing_on
	echo global >$T/trace_clock
	echo >$T/trace
	echo 1 >$T/events/sched/sched_process_exec/enable
	echo 1 >$T/events/kvm/kvm_entry/enable
	# The first exit ends the entries, the mark ends the exits.
	echo 'disable_event:kvm:kvm_entry:1' >$T/events/kvm/kvm_exit/trigger
	echo 'hist:keys=exit_reason' >>$T/events/kvm/kvm_exit/trigger
	echo "disable_hist:kvm:kvm_exit:1 if $mark" >$T/events/kvm/kvm_pio/trigger
	echo "$mark" >$T/events/kvm/kvm_pio/filter
	echo 1 >$T/events/kvm/kvm_pio/enable
	echo 1 >$T/tracing_on
	vmm "$1" boot >console
	echo 0 >$T/tracing_on
	grep -q '^guest: up' console || { cat console >&2; return; }
	exits=$(sed -n 's/^ *Hits: *\([0-9]*\).*/\1/p' $T/events/kvm/kvm_exit/hist)
	# "comm-pid [cpu] flags time: event: ..."
	awk -v vmm="$1" -v exits="$exits" '
		function at() { for (i = 1; i <= NF; i++) if ($i ~ /^[0-9]+\.[0-9]+:$/) return substr($i, 1, length($i) - 1) * 1000 }
		/sched_process_exec: filename=[^ ]*\/(instar|qemu-system-x86_64) / { exec = at() }
		/kvm_entry:/ && !entry { entry = at() }
		/kvm_pio:/ && !init { init = at() }
		END { printf "start %s %.3f\nboot %s %.1f\nexits %s %d\n", vmm, entry - exec, vmm, init - entry, vmm, exits }' $T/trace
	echo "!disable_hist:kvm:kvm_exit:1 if $mark" >$T/events/kvm/kvm_pio/trigger
	echo '!hist:keys=exit_reason' >$T/events/kvm/kvm_exit/trigger
	echo '!disable_event:kvm:kvm_entry:1' >$T/events/kvm/kvm_exit/trigger
	echo 0 >$T/events/enable
}

# Memory in a guest that waits; then its throughput.
work() {
	"$INSTAR_VSOCK_TOOL" receive-tcp 0.0.0.0:5001 >/dev/null &
	helpers=$!
	(until "$INSTAR_VSOCK_TOOL" send-tcp 10.9.8.2:5002 64 >/dev/null 2>&1; do sleep 0.2; done) &
	helpers="$helpers $!"
	vmm "$1" work >console &
	vm=$!
	until grep -q '^guest: up' console; do sleep 0.2; done
	sleep 1
	echo "memory $1 $(private do=work)"
	wait $vm
	# shellcheck disable=SC2086
	kill $helpers 2>/dev/null
	sed -n "s/\r//; s/^guest: \([a-z0-9]* \)\([0-9.]*\)$/\1$1 \2/p" console
}

# What a network of the user's own takes: bulk data out and in by a forwarded port, and a byte there and back.
user() {
	"$INSTAR_VSOCK_TOOL" receive-tcp 127.0.0.1:5003 >/dev/null &
	helpers=$!
	"$INSTAR_VSOCK_TOOL" serve-tcp 127.0.0.1:5005 1 &
	helpers="$helpers $!"
	vmm "$1" user >console &
	vm=$!
	until grep -q '^guest: listens' console || ! kill -0 $vm 2>/dev/null; do sleep 0.2; done
	# The guest listens a moment after it says so.
	sleep 2
	"$INSTAR_VSOCK_TOOL" send-tcp 127.0.0.1:5004 64 >/dev/null
	wait $vm
	# shellcheck disable=SC2086
	kill $helpers 2>/dev/null
	sed -n "s/\r//; s/^guest: \([a-z0-9]* \)\([0-9.]*\)$/\1$1 \2/p" console
}

# Requests to a live qcow2 image that is new for each machine: half of it has clusters; and to one over a raw one.
qcow2() {
	qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
	qemu-img resize -q disk.qcow2 512M
	qemu-img create -q -f qcow2 -b disk.raw -F raw over.qcow2
	vmm "$1" qcow2 >console
	sed -n "s/\r//; s/^guest: \([a-z0-9]* \)\([0-9.]*\)$/\1$1 \2/p" console
	for image in disk over; do
		qemu-img check -f qcow2 -q $image.qcow2 >&2 || echo "$1 left $image.qcow2 damaged" >&2
	done
	rm disk.qcow2 over.qcow2
}

. "$here/bench-cloud.sh"

# Nobody pays for what is read from the lab's disk the first time.
for machine in instar pc microvm; do
	[ "$INSTAR_PARTS" = cloud ] || vmm $machine boot >console
done
part cloud && cloud_begin
for run in $(seq "$INSTAR_RUNS"); do
	for machine in instar pc microvm; do
		part boot && boot $machine
		part work && work $machine
		[ $machine != microvm ] || continue
		part qcow2 && qcow2 $machine
		part user && user $machine
		part cloud && cloud $machine
	done
done | tee /results/measured >measured
echo "what         machine       p50        p99   (of $INSTAR_RUNS)"
for what in start boot exits memory read read4k write write4k send receive \
	qread qread4k qread4k8 qwrite qwrite4k qwrite4k8 qnew qnew4k qnew4k8 qover qover4k qover4k8 \
	usersend userreceive userping ssh cloudmemory; do
	for machine in instar pc microvm; do
		awk -v what=$what -v machine=$machine '$1 == what && $2 == machine { print $3 }' measured | sort -n |
			awk -v what=$what -v machine=$machine '{ v[NR] = $1 }
				END { p = int(NR * 0.99 + 0.999); if (p > NR) p = NR
					if (NR) printf "%-12s %-8s %9s %10s\n", what, machine, v[int((NR + 1) / 2)], v[p] }'
	done
done
