#!/bin/busybox sh
# Publishes the numbers from 0 to $1 - 1 in lots of 100. A lot that is not answered whole is published again, with the
# same ids: a program that wants each event once does no less.
n=0
while [ "$n" -lt "$1" ]; do
  seq "$n" $((n + 99)) | sed 's/.*/{"topic":"count","id":"count-&","payload":&}/' >/tmp/lot
  until [ "$(socat -t 10 - UNIX-CONNECT:/run/castra/agent.sock </tmp/lot 2>/dev/null | grep -c '"status":"ok"')" = 100 ]; do
    sleep 0.1
  done
  n=$((n + 100))
  echo "$n" >/tmp/reached
done
