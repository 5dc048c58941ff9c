# A Debian image for clouds, in the lab, by `instar run IMAGE`. Says `ok NAME` for everything that is as it should be, and what
# else is, and ends with 1 if that is anything. Consoles are in /results.
B=$LAB/busybox
failed=0
mkdir -p /tmp/cloud && cd /tmp/cloud || exit 1

ok() {
	echo "ok $1"
}

wrong() {
	echo "WRONG $*"
	failed=1
}

same() {
	if [ "$2" = "$3" ]; then ok "$1"; else wrong "$1: '$2' is not '$3'"; fi
}

# machine NAME: runs the guest with the user-data of this name; its console is /results/NAME.
machine() {
	"$INSTAR_BIN" run image.qcow2 --memory 768M --user-data "$1.yaml" --ssh-key key.pub --hostname cloud --timeout 1500 --json \
		--forward tcp:2222:22 >"/results/$1" 2>"/results/$1.err" </dev/null
}

# inside COMMAND: runs it in the guest, by ssh.
inside() {
	ssh -i key -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
		-o ConnectTimeout=120 debian@127.0.0.1 "$@" </dev/null 2>>/results/ssh
}

# said NAME WORD: what the guest said about it.
said() {
	"$B" tr -d '\r' <"/results/$1" | sed -n "s/^.*guest: $2 //p" | tail -n 1
}

offset=$((8192 * 512))
"$B" ip link set lo up
# What an image names must lie beside it.
cp "$LAB/cloud/base.qcow2" base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 image.qcow2
base=$(sha256sum <base.qcow2)
ssh-keygen -q -t ed25519 -N '' -f key

### cloud-init runs to its end, the guest reboots, finds what it wrote, and switches itself off.
cat >first.yaml <<'END'
#cloud-config
bootcmd:
  - |
    [ -e /blob ] || exit 0
    exec >/dev/ttyS0 2>&1
    echo "guest: again $(sha256sum </blob)"
    echo "guest: hostname $(hostname)"
    echo "guest: key $(cat ~debian/.ssh/authorized_keys)"
    echo "guest: result $(grep -m 1 'finished at' /var/log/cloud-init-output.log)"
    systemctl --no-block poweroff
runcmd:
  - |
    head -c 33554432 /dev/urandom >/blob
    sync
    echo "guest: wrote $(sha256sum </blob)" >/dev/ttyS0
power_state: { mode: reboot, delay: now, timeout: 300 }
END
machine first
same 'power-off' $? 0
wrote=$(said first wrote)
[ -n "$wrote" ] && ok 'cloud-init' || wrong "cloud-init: $(tail -n 40 /results/first) $(cat /results/first.err)"
same 'written before the reboot' "$(said first again)" "$wrote"
same 'hostname' "$(said first hostname)" cloud
same 'key' "$(said first key)" "$(cat key.pub)"
case $(said first result) in
*DataSourceNoCloud*) ok finished ;;
*) wrong "cloud-init says: $(said first result)" ;;
esac
same 'boots' "$(grep -c '"outcome"' /results/first.err)" 2
"$INSTAR_BIN" check image.qcow2 >/results/check 2>&1 && qemu-img check image.qcow2 >>/results/check 2>&1 && ok 'check' ||
	wrong "$(cat /results/check)"
qemu-img convert -O raw image.qcow2 image.raw
e2fsck -fn "image.raw?offset=$offset" >/results/fsck 2>&1 && ok 'clean e2fsck' || wrong "$(cat /results/fsck)"
debugfs -R 'dump /blob blob' "image.raw?offset=$offset" 2>/dev/null
same 'in the image' "$(sha256sum <blob)" "$wrote"
rm image.raw

### Another configuration is applied anew; the machine and the reader of its disk are killed while the guest writes.
cat >killed.yaml <<'END'
#cloud-config
runcmd:
  - |
    n=0
    while [ $n -lt 10000 ]; do
      n=$((n + 1))
      seq $n $((n + 4000)) | dd of=/file-$n conv=fsync 2>/dev/null && echo "guest: durable $n" >/dev/ttyS0
    done
END
machine killed &
vm=$!
# Lines that are whole: the last one may be cut off.
durable() {
	sed -n 's/^.*guest: durable \([0-9]*\)\r$/\1/p' /results/killed
}
until durable | grep -qx 25; do
	kill -0 $vm 2>/dev/null || break
	sleep 0.2
done
same 'ssh' "$(inside 'hostname; head -c 3000000 /dev/zero | sha256sum')" \
	"cloud
$(head -c 3000000 /dev/zero | sha256sum)"
pkill -9 -f 'user-data killed.yaml'
wait
durable=$(durable | tail -n 1)
# Leaks are all that may be wrong with it.
qemu-img check image.qcow2 >/results/check 2>&1
case $? in
0 | 3) ok 'killed check' ;;
*) wrong "killed: $(cat /results/check)" ;;
esac
same 'backing file' "$(sha256sum <base.qcow2)" "$base"
qemu-img convert -O raw image.qcow2 image.raw
# e2fsck opens a file system anew when it has replayed its journal, and does not know its place in a disk any more then.
dd if=image.raw of=/results/root.ext4 bs=4M skip=1 conv=sparse 2>/dev/null
e2fsck -fy /results/root.ext4 >/results/fsck 2>&1
[ $? -le 1 ] && e2fsck -fn /results/root.ext4 >/results/fsck 2>&1 && ok 'killed e2fsck' || wrong "killed: $(cat /results/fsck)"
lost=0
for number in $(seq "${durable:-0}"); do
	debugfs -R "dump /file-$number saved" /results/root.ext4 2>/dev/null
	seq "$number" "$((number + 4000))" | cmp -s - saved || {
		wrong "file $number of $durable is lost"
		lost=1
	}
done
rm /results/root.ext4
[ "$lost" = 1 ] || [ "${durable:-0}" -lt 25 ] || ok 'killed files'

exit $failed
