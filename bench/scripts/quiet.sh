# Sourced. quiet: waits, at most QUIET_TRIES times 0.3 s, until the machine is quiet. cell COMMAND…: runs a measurement,
# again up to RETRIES times while others kept more than 0.45 cores busy, and prints each attempt's line.
busy_ticks() {
  local user nice system idle iowait irq softirq steal rest
  read -r _ user nice system idle iowait irq softirq steal rest < /proc/stat
  echo $((user + nice + system + irq + softirq + steal))
}
quiet() {
  local try before
  for try in $(seq "${QUIET_TRIES:-12}"); do
    before=$(busy_ticks); sleep 0.3
    [ $(($(busy_ticks) - before)) -le 12 ] && return 0 # 12 of 30 ticks: under 0.4 of one core
  done
  return 1
}
cell() {
  local try line other
  for try in $(seq "${RETRIES:-2}"); do
    quiet; line=$("$@") || return
    echo "$line"
    other=$(sed -n 's/.*"other_cpu":\([0-9.]*\).*/\1/p' <<< "$line")
    [ -z "$other" ] && return
    awk "BEGIN { exit !($other < 0.45) }" && return
  done
}
