#!/bin/busybox sh
# The guest's first program: makes it a machine, then runs what the test types. A command's output ends with a line
# "@end CODE".
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
dmesg -n 1
# Whatever becomes of the test, this machine ends.
(sleep 900; reboot -f) &
while read -r module; do
  insmod "/modules/$module.ko" || echo "cannot load $module"
done </modules/order
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
  ip link set eth0 up
  ip addr add 10.0.2.15/24 dev eth0
  ip route add default via 10.0.2.2
fi
stty raw -echo
echo @ready
while IFS= read -r line; do
  sh -c "$line" </dev/null 2>&1
  printf '\n@end %d\n' $?
done
reboot -f
