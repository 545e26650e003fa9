// Numbers as people read them.

export function bytes(count) {
  let left = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(left) < 1000) return unit === "B" ? `${Math.round(left)} B` : `${digits(left)} ${unit}`;
    left /= 1000;
  }
  return `${digits(left)} TB`;
}

export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${digits(seconds * 1000)} ms`;
  if (seconds < 120) return `${digits(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${digits(seconds / 3600)} h`;
}

/** Three digits at most: 0.123, 1.23, 12.3, 123. */
export function digits(value) {
  if (value >= 99.95) return String(Math.round(value));
  if (value >= 9.995) return trimmed(value, 1);
  return trimmed(value, value >= 0.9995 || value === 0 ? 2 : 3);
}

const trimmed = (value, places) => String(Number(value.toFixed(places)));

export const percent = (share) => `${Math.round(100 * share)} %`;

/** "1 node", "2 nodes". */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Layers `first` up to, and without, `end`. */
export const layers = (first, end) => (end - first === 1 ? `layer ${first}` : `layers ${first} to ${end - 1}`);

/** `[4, 8)` as people count: 4–7. */
export function span(interval) {
  const found = /\[(\d+), (\d+)\)/.exec(interval);
  if (!found) return interval;
  const first = Number(found[1]), last = Number(found[2]) - 1;
  return first === last ? `${first}` : `${first}–${last}`;
}

export const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString([], { hour12: false });
