# What a guest of `make bench-linux` does: do=boot only says that it is up, do=work reads, writes and sends.
printf '\001' | dd of=/dev/port bs=1 seek=1008 conv=notrunc 2>/dev/null
echo guest: up
seconds() {
	cut -d' ' -f1 /proc/uptime
}
# rate NAME MIB COMMAND...: how much a second.
rate() {
	name=$1 mib=$2
	shift 2
	from=$(seconds)
	"$@" >/dev/null 2>&1
	echo "guest: $name $(awk -v mib="$mib" -v from="$from" -v to="$(seconds)" 'BEGIN { print mib / (to - from + 0.001) }')"
}
send() {
	dd if=/dev/zero bs=64k count=1024 | nc 10.9.8.1 5001
}
if grep -q do=work /proc/cmdline; then
	sleep 4
	rate read 256 dd if=/dev/vda of=/dev/null bs=1M iflag=direct
	rate write 256 dd if=/dev/zero of=/dev/vda bs=1M count=256 oflag=direct
	ip addr add 10.9.8.2/24 dev eth0
	ip link set eth0 up
	ping -c 1 -W 5 10.9.8.1 >/dev/null
	rate net 64 send
fi
