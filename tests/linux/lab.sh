# Guests of `instar run`, in the lab. `lab.sh TRANSPORT`: says `ok NAME` for everything that is as it should be, and what
# else is, and ends with 1 if that is anything. The guests' consoles are in /results.
transport=$1
here=$(readlink -f "$(dirname "$0")")
B=$LAB/busybox
failed=0
cd /tmp || exit 1
mkdir -p "/tmp/vm" && cd /tmp/vm || exit 1
"$here/../../scripts/lab-initrd.sh" initrd "$INSTAR_VSOCK_TOOL" <"$here/guest.sh" || exit 1

ok() {
	echo "ok $1"
}

wrong() {
	echo "WRONG $*"
	failed=1
}

# machine NAME WORDS OPTION...: runs a guest; its console is /results/NAME.
machine() {
	name=$1 do=$2
	shift 2
	# shellcheck disable=SC2086
	"$INSTAR_BIN" run --kernel "$LAB/guest/vmlinuz" --initrd initrd --transport "$transport" --timeout 600 \
		--cmdline "console=ttyS0 quiet panic=-1 do=$do" --json "$@" >"/results/$name" 2>"/results/$name.err"
}

# expect NAME LINE...: the guest has said all these.
expect() {
	file=/results/$1
	shift
	for line; do
		if "$B" tr -d '\r' <"$file" | grep -qxF "guest: $line"; then
			ok "$transport ${file##*/} $line"
		else
			wrong "${file##*/}: no '$line'"
		fi
	done
}

# said NAME WORD: what the guest said about it.
said() {
	"$B" tr -d '\r' <"/results/$1" | sed -n "s/^guest: $2 //p"
}

same() {
	if [ "$2" = "$3" ]; then ok "$transport $1"; else wrong "$1: '$2' is not '$3'"; fi
}

sum() {
	sha256sum | cut -c1-64
}

ip link set lo up
ip tuntap add dev tap0 mode tap && ip addr add 10.9.8.1/24 dev tap0 && ip link set tap0 up || wrong no tap device

### All devices, four processors, six gigabytes.
seq 1 3000000 | head -c 16777216 >vda.raw
truncate -s 64M vda.raw
seq 5 2000000 | head -c 8388608 >vdb.raw
before=$(sha256sum <vdb.raw)
# An input that ends would end the connection.
mkfifo hold
exec 9<>hold
"$B" nc -l -p 5001 >from-guest <&9 &
(
	until "$B" nc 10.9.8.2 5002 <vdb.raw 2>/dev/null; do sleep 0.3; done
) &
"$INSTAR_VSOCK_TOOL" serve-unix vm.sock_5000 1 &
(
	until "$INSTAR_VSOCK_TOOL" ask-unix vm.sock 1234 1000000 >from-vsock 2>/dev/null; do sleep 0.3; done
) &
asking=$!
machine all facts,blk,rng,net,vsock --cpus 4 --memory 6G --rng \
	--disk vda.raw,serial=DISK-1 --disk vdb.raw,readonly --net tap:tap0,mac=02:00:00:00:00:09 --vsock 42:vm.sock \
	--serial stdio --console /results/hvc <&9
same 'power-off' $? 0
expect all up 'cpus 4' 'clock kvm-clock' "year $(date +%Y)" 'serial DISK-1 ro 0 1' 'bytes 67108864' \
	'rng virtio_rng.0' 'random 256' 'mac 02:00:00:00:00:09' 'ping ok' 'vsock-in done' 'vsock-out 1000000 bytes came back'
if grep -q '"marks":\[{' /results/all.err; then ok "$transport mark"; else wrong "no mark: $(cat /results/all.err)"; fi
[ "$(said all memory)" -gt 5500 ] || wrong "memory: $(said all memory)"
same 'blk read' "$(said all read)" "$(sum <vdb.raw)"
same 'blk write' "$(said all wrote)" "$(dd if=vda.raw bs=64k skip=256 count=64 2>/dev/null | sum)"
same 'blk read back' "$(said all again)" "$(said all wrote)"
same 'blk discard' "$(said all discarded)" "$(head -c 4194304 /dev/zero | sum)"
same 'blk discard in the file' "$(dd if=vda.raw bs=64k skip=128 count=64 2>/dev/null | sum)" "$(said all discarded)"
same 'read-only disk' "$(sha256sum <vdb.raw)" "$before"
same 'tcp out' "$(said all sent)" "$(sum <from-guest)"
same 'tcp in' "$(said all received)" "$(sum <vdb.raw)"
wait $asking
same 'vsock in' "$(cat from-vsock)" '1000000 bytes came back'
case $(said all vsock-nobody) in *[Rr]e[sf]*) ok "$transport vsock nobody" ;; *) wrong "vsock nobody: $(said all vsock-nobody)" ;; esac
[ ! -e vm.sock ] || wrong vm.sock is left

### passt: an address, and connections out and in. The lab's way out, whose address the guest gets, leads nowhere.
ip tuntap add dev out mode tap && ip addr add 192.0.2.2/24 dev out && ip link set out up &&
	ip route add default via 192.0.2.1 || wrong no way out
"$B" nc -l -p 5003 >passt-from-guest <&9 &
# The port is passt's from the start: whoever connects before the guest listens is sent away again, without an error.
rm -f passt-done
(
	until grep -q '^guest: listens' /results/passt 2>/dev/null || [ -e passt-done ]; do sleep 0.3; done
	until [ -e passt-done ]; do
		"$B" nc 127.0.0.1 5004 <vdb.raw
		sleep 0.3
	done
) &
machine passt passt --memory 256M --net passt --forward tcp:5004:5004 <&9
same 'passt exit code' $? 0
touch passt-done
expect passt 'address 192.0.2.2/24' 'mtu 65520'
same 'passt out' "$(said passt sent)" "$(sum <passt-from-guest)"
same 'passt in' "$(said passt received)" "$(sum <vdb.raw)"
for _ in $(seq 600); do
	"$B" pidof passt passt.avx2 >/dev/null || break
	sleep 0.1
done
! "$B" pidof passt passt.avx2 >/dev/null && ok "$transport passt ends" || wrong passt runs on

### virtio-console, by a terminal of its own.
machine console console --memory 128M --serial /results/console.tty --console pty &
vm=$!
for _ in $(seq 1200); do
	pty=$(sed -n 's/^instar: the console is at //p' /results/console.err)
	[ -z "$pty" ] || break
	sleep 0.1
done
read -r line <"$pty"
line=$(printf %s "$line" | "$B" tr -d "\r")
echo 'hello to hvc0' >"$pty"
wait $vm
same 'console exit code' $? 0
same 'console out' "$line" 'hello from hvc0'
mv /results/console.tty /results/console
expect console 'console hello to hvc0'

### Reboots are fresh boots.
truncate -s 1M count.raw
machine reboot reboot --memory 128M --disk count.raw
same 'reboot exit code' $? 0
expect reboot 'boot 1' 'boot 2' 'boot 3'

### An image that is only read: its boots are counted in a file that ends with the machine.
truncate -s 1M thrown.raw
qemu-img convert -f raw -O qcow2 thrown.raw thrown.qcow2
before=$(sha256sum <thrown.qcow2)
machine thrown reboot --memory 128M thrown.qcow2 --ephemeral --net none
same 'thrown exit code' $? 0
expect thrown 'boot 1' 'boot 2' 'boot 3'
same 'thrown away' "$(sha256sum <thrown.qcow2)" "$before"

### The power button; a guest that does not listen is stopped.
machine button button --memory 128M &
until grep -q '^guest: waiting' /results/button; do sleep 0.2; done
kill -TERM "$(pgrep -o -f 'do=button')"
wait $!
same 'button exit code' $? 0
expect button pressed
machine deaf deaf --memory 128M --shutdown-timeout 1 &
vm=$!
until grep -q '^guest: waiting' /results/deaf; do sleep 0.2; done
kill -TERM "$(pgrep -o -f 'do=deaf')"
wait $vm
same 'deaf exit code' $? 1
grep -q 'did not power off within 1 s' /results/deaf.err || wrong "deaf: $(cat /results/deaf.err)"

### Devices that are saved and restored while they work.
truncate -s 32M recycled.raw
machine recycled recycled --memory 128M --rng --disk recycled.raw --net tap:tap0 --recycle-devices 200
same 'recycled exit code' $? 0
expect recycled 'ping ok' 'rounds 3'
! grep -q 'guest: .*\(differs\|failed\)' /results/recycled || wrong "recycled: $(grep guest: /results/recycled)"
recycled=$(sed -n 's/.*"recycled":\([0-9]*\).*/\1/p' /results/recycled.err)
[ "${recycled:-0}" -ge 3 ] && ok "$transport recycled" || wrong "recycled ${recycled:-0} times"

### The process is killed while a guest writes.
truncate -s 64M crash.raw
mkfs.ext4 -q crash.raw
machine crash crash --memory 128M --disk crash.raw &
# Lines that are whole: the last one may be cut off.
durable() {
	sed -n 's/^guest: durable \([0-9]*\)\r$/\1/p' /results/crash
}
until durable | grep -qx 25; do sleep 0.2; done
pkill -9 -f 'do=crash'
wait $!
durable=$(durable | tail -n 1)
lost=0
e2fsck -fy crash.raw >/results/crash.fsck 2>&1
[ $? -le 1 ] && e2fsck -fn crash.raw >>/results/crash.fsck 2>&1 || wrong "e2fsck: $(cat /results/crash.fsck)"
for number in $(seq "$durable"); do
	debugfs -R "dump /file-$number saved" crash.raw 2>/dev/null
	seq "$number" "$((number + 400))" | cmp -s - saved || {
		wrong "file $number of $durable is lost"
		lost=1
	}
done
[ "$lost" = 1 ] || [ "${durable:-0}" -lt 25 ] || ok "$transport crash"

### A disk is used by one machine at a time.
machine busy facts --memory 128M --disk vda.raw &
until grep -q '^guest: up' /results/busy; do sleep 0.2; done
"$INSTAR_BIN" run --kernel "$LAB/guest/vmlinuz" --disk vda.raw 2>/results/busy.second && wrong 'a disk was used twice'
grep -q 'Failed to get' /results/busy.second && ok "$transport disk in use" || wrong "busy: $(cat /results/busy.second)"

exit $failed
