# A Debian image for clouds, for bench.sh: how long until one can log in, and what that takes.

# What all machines start from.
cloud_begin() {
	cp "$LAB/cloud/base.qcow2" base.qcow2
	"$INSTAR_BIN" bootscan base.qcow2 --extract-kernel kernel --extract-initrd ram >entries || exit 1
	entry=$(sed -n 's/^ *command line: //p' entries | head -n 1)
	ssh-keygen -q -t ed25519 -N '' -f key
	printf '#cloud-config\n' >user-data
	printf '{ "instance-id": "bench", "public-keys": ["%s"] }\n' "$(cat key.pub)" >meta-data
	genisoimage -quiet -o seed.iso -V cidata -J -r user-data meta-data
}

# cloud_vmm NAME: runs the machine, its console is on standard output.
cloud_vmm() {
	case $1 in
	instar)
		"$INSTAR_BIN" run cloud.qcow2 --cpus 1 --memory 768M --user-data user-data --meta-data meta-data \
			--forward tcp:2222:22
		;;
	pc)
		qemu-system-x86_64 -accel kvm -cpu host -m 768M -nodefaults -no-user-config -display none -serial stdio -no-reboot \
			-M pc -kernel kernel -initrd ram -append "$entry" -drive if=none,id=d,file=cloud.qcow2,format=qcow2 \
			-device virtio-blk-pci,drive=d -drive if=none,id=s,file=seed.iso,format=raw,readonly=on \
			-device virtio-blk-pci,drive=s -netdev user,id=n,hostfwd=tcp:127.0.0.1:2222-:22 -device virtio-net-pci,netdev=n
		;;
	esac </dev/null
}

# cloud NAME: one boot of a new overlay.
cloud() {
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 cloud.qcow2
	read -r from rest </proc/uptime
	cloud_vmm "$1" >"/results/cloud-$1" &
	vm=$!
	if "$INSTAR_VSOCK_TOOL" greeting 127.0.0.1:2222 1000 >greeting; then
		read -r to rest </proc/uptime
		echo "ssh $1 $(awk -v from="$from" -v to="$to" 'BEGIN { printf "%.1f", to - from }')"
		# That it is the guest one logs in to, and a moment for what the login needs.
		ssh -i key -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
			-o ConnectTimeout=120 debian@127.0.0.1 true </dev/null || echo "$1: no login" >&2
		echo "cloudmemory $1 $(private cloud.qcow2)"
	else
		tail -n 20 "/results/cloud-$1" >&2
	fi
	# Its port must be free again.
	while pkill -9 -f "^[^ ]*(instar|qemu-system)[^ ]* .*cloud.qcow2"; do sleep 0.2; done
	wait $vm 2>/dev/null
	rm cloud.qcow2
}
