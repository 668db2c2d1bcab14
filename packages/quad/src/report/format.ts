/** `1.4 GB`, `120 MB`, `3 kB`: decimal units. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `0.031 %`, `2.4 %`, `37 %`. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 10 ? value.toFixed(0) : value >= 0.995 ? value.toFixed(1) : value.toFixed(2)} %`;
}

/** Noise over signal as dB; the other way round, so that more is better. */
export function decibels(noise: number): string {
  return noise > 0 ? `${(-10 * Math.log10(noise)).toFixed(1)} dB` : "exact";
}

export function fixed(value: number | null | undefined, digits: number): string {
  return value === null || value === undefined ? "" : value.toFixed(digits);
}

export function significant(value: number | null | undefined, digits = 3): string {
  return value === null || value === undefined ? "" : String(Number(value.toPrecision(digits)));
}

/** `a`, `a and b`, `a, b and c`. */
export function listed(names: readonly string[]): string {
  return names.length < 2 ? (names[0] ?? "") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
