# What a guest of `make bench-linux` does: do=boot only says that it is up, do=work reads, writes, sends and receives;
# do=qcow2 reads and writes two images; do=user sends, receives and asks over a network of the user's own.
printf '\005\n' >/dev/ttyS0
echo guest: up
# rate NAME MIB COMMAND...: how much a second.
rate() {
	name=$1 mib=$2
	shift 2
	from=$(cut -d' ' -f1 /proc/uptime)
	"$@" >/dev/null 2>&1
	echo "guest: $name $(awk -v mib="$mib" -v from="$from" -v to="$(cut -d' ' -f1 /proc/uptime)" \
		'BEGIN { printf "%.1f", mib / (to - from + 0.001) }')"
}
if grep -q do=work /proc/cmdline; then
	sleep 4
	rate read 256 dd if=/dev/vda of=/dev/null bs=1M iflag=direct
	rate read4k 16 dd if=/dev/vda of=/dev/null bs=4k count=4096 iflag=direct
	rate write 256 dd if=/dev/zero of=/dev/vda bs=1M count=256 oflag=direct
	rate write4k 16 dd if=/dev/zero of=/dev/vda bs=4k count=4096 oflag=direct
	ip addr add 10.9.8.2/24 dev eth0
	ip link set eth0 up
	until ping -c 1 -W 1 10.9.8.1 >/dev/null; do :; done
	echo "guest: send $(vsock-tool send-tcp 10.9.8.1:5001 64)"
	echo "guest: receive $(vsock-tool receive-tcp 0.0.0.0:5002)"
fi
# spread NAME DISK WHAT FIRST MIB COUNT THREADS: the same of requests at random places.
spread() {
	name=$1 disk=$2
	shift 2
	echo "guest: $name $(vsock-tool disk "/dev/$disk" "$@")"
}
if grep -q do=qcow2 /proc/cmdline; then
	rate qread 256 dd if=/dev/vda of=/dev/null bs=1M count=256 iflag=direct
	spread qread4k vda read 0 256 4096 1
	spread qread4k8 vda read 0 256 8192 8
	rate qwrite 256 dd if=/dev/zero of=/dev/vda bs=1M count=256 oflag=direct
	spread qwrite4k vda write 0 256 4096 1
	spread qwrite4k8 vda write 0 256 8192 8
	# What has no clusters yet, in the second half.
	rate qnew 64 dd if=/dev/zero of=/dev/vda bs=1M seek=256 count=64 oflag=direct
	spread qnew4k vda write 320 96 1024 1
	spread qnew4k8 vda write 416 96 1024 8
	# What is below, by another image.
	rate qover 64 dd if=/dev/zero of=/dev/vdb bs=1M count=64 oflag=direct
	spread qover4k vdb write 64 96 1024 1
	spread qover4k8 vdb write 160 96 1024 8
fi
if grep -q do=user /proc/cmdline; then
	ip addr add 10.0.2.15/24 dev eth0
	ip link set eth0 up
	ip route add default via 10.0.2.2
	until ping -c 1 -W 1 10.0.2.2 >/dev/null; do :; done
	echo "guest: usersend $(vsock-tool send-tcp 10.0.2.2:5003 64)"
	echo "guest: userping $(vsock-tool ping-tcp 10.0.2.2:5005 2000)"
	echo guest: listens
	echo "guest: userreceive $(vsock-tool receive-tcp 0.0.0.0:5004)"
fi
