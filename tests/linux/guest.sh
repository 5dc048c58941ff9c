# What a guest of the tests does, after its modules are in: each word of do= on the kernel command line is a function here.
# Every fact goes to the console as a line that starts with `guest:`.

say() {
	echo "guest: $*"
}

word() {
	sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline
}

do_facts() {
	say cpus "$(nproc)"
	say memory "$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)"
	say clock "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
	say year "$(date +%Y)"
	say vendor "$(cat /sys/class/dmi/id/sys_vendor 2>/dev/null)"
}

# vda is written, vdb is read only.
do_blk() {
	say serial "$(cat /sys/block/vda/serial)" ro "$(cat /sys/block/vda/ro)" "$(cat /sys/block/vdb/ro)"
	say bytes "$(blockdev --getsize64 /dev/vda)"
	say read "$(dd if=/dev/vdb bs=1M 2>/dev/null | sha256sum | cut -c1-64)"
	seq 1 1000000 | head -c 4194304 >/blob
	dd if=/blob of=/dev/vda bs=64k seek=256 conv=notrunc,fsync 2>/dev/null || say write failed
	say wrote "$(sha256sum </blob | cut -c1-64)"
	blkdiscard -o 8388608 -l 4194304 /dev/vda || say discard failed
	echo 3 >/proc/sys/vm/drop_caches
	say discarded "$(dd if=/dev/vda bs=64k skip=128 count=64 2>/dev/null | sha256sum | cut -c1-64)"
	say again "$(dd if=/dev/vda bs=64k skip=256 count=64 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)"
	dd if=/blob of=/dev/vdb bs=4k count=1 conv=fsync 2>/dev/null && say read-only disk was written
}

do_rng() {
	say rng "$(cat /sys/class/misc/hw_random/rng_current)"
	say random "$(dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c)"
}

do_console() {
	# Open from the start: what comes while nobody has it open is lost.
	exec 8<>/dev/hvc0
	stty -F /dev/hvc0 raw -echo
	echo 'hello from hvc0' >&8
	read -r line <&8
	say console "$line"
}

do_net() {
	ip addr add 10.9.8.2/24 dev eth0
	ip link set eth0 up
	say mac "$(cat /sys/class/net/eth0/address)"
	for _ in 1 2 3 4 5; do
		ping -c 2 -W 2 10.9.8.1 >/dev/null && break
	done && say ping ok
	seq 1 900000 | head -c 4000000 >/blob
	nc 10.9.8.1 5001 </blob
	say sent "$(sha256sum </blob | cut -c1-64)"
	# An input that ends would end the connection.
	mkfifo /hold
	nc -l -p 5002 >/got 9<>/hold <&9
	say received "$(sha256sum </got | cut -c1-64)"
}

# The address is what passt says it is.
do_passt() {
	ip link set eth0 up
	cat >/lease <<'END'
#!/bin/sh
[ "$1" != bound ] || ip addr add "$ip/$mask" dev eth0
[ "$1" != bound ] || ip route add default via "$router"
END
	chmod 755 /lease
	udhcpc -i eth0 -n -q -t 20 -s /lease >/dev/null 2>&1
	say address "$(ip -4 -o addr show dev eth0 | sed 's/.*inet \([^ ]*\).*/\1/')"
	say mtu "$(cat /sys/class/net/eth0/mtu)"
	seq 1 900000 | head -c 4000000 >/blob
	nc 10.9.8.1 5003 </blob
	say sent "$(sha256sum </blob | cut -c1-64)"
	mkfifo /hold
	say listens
	nc -l -p 5004 >/got 9<>/hold <&9
	say received "$(sha256sum </got | cut -c1-64)"
}

do_vsock() {
	vsock-tool serve-vsock 1234 1 &
	say vsock-out "$(vsock-tool ask-vsock 2 5000 1000000)"
	say vsock-nobody "$(vsock-tool ask-vsock 2 5999 10 2>&1)"
	wait
	say vsock-in done
}

# Counts boots on the disk; the third one ends.
do_reboot() {
	boots=$(dd if=/dev/vda bs=1 count=1 2>/dev/null | tr -cd 0-9)
	boots=$((${boots:-0} + 1))
	say boot "$boots"
	printf %s "$boots" | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
	[ "$boots" -ge 3 ] || reboot -f
}

do_button() {
	# Open before it may be pressed: what comes while nobody has it open is lost.
	exec 7<"/dev/input/$(grep -l Power /sys/class/input/event*/device/name | cut -d/ -f5)"
	say waiting
	dd of=/dev/null bs=24 count=1 <&7 2>/dev/null
	say pressed
}

# The button has no effect.
do_deaf() {
	say waiting
	sleep 600
}

# Files of which this says that they are durable must be there after a crash.
do_crash() {
	mount -t ext4 /dev/vda /mnt
	number=0
	while :; do
		number=$((number + 1))
		seq "$number" "$((number + 400))" | dd of="/mnt/file-$number" conv=fsync 2>/dev/null || say fsync failed
		say durable "$number"
	done
}

# Devices are saved, reset and restored all the time; nothing may be lost.
do_recycled() {
	ip addr add 10.9.8.2/24 dev eth0
	ip link set eth0 up
	seq 1 1000000 | head -c 4194304 >/blob
	sum=$(sha256sum </blob | cut -c1-64)
	for round in 1 2 3; do
		dd if=/blob of=/dev/vda bs=16k seek=256 conv=notrunc oflag=direct 2>/dev/null || say write failed
		seen=$(dd if=/dev/vda bs=64k skip=64 count=64 iflag=direct 2>/dev/null | sha256sum | cut -c1-64)
		[ "$seen" = "$sum" ] || say "round $round" differs
		dd if=/dev/hwrng of=/dev/null bs=64 count=4 2>/dev/null
	done
	ping -c 3 -W 3 10.9.8.1 >/dev/null && say ping ok
	say rounds "$round"
}

vsock-tool mark 1
say up
for name in $(word do | tr , ' '); do
	"do_$name"
done
