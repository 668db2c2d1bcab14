import type { AdapterReport } from "./types.ts";

const shown = 5;

/** What a user has to know of how an adapter fits: its warnings, and every key that has no effect, a few of them by name. */
export function describeReport(name: string, report: AdapterReport): string[] {
  const texts = report.warnings.slice(0, shown).map((text) => `adapter "${name}": ${text}`);
  if (report.warnings.length > shown)
    texts.push(`adapter "${name}": ${report.warnings.length - shown} more warnings; quad inspect --json lists all`);
  const lost = [
    ...report.unmatched.map(({ key, reason }) => `${key}: ${reason}`),
    ...report.mismatched.map(({ key, module, expected, got }) => `${key}: ${module} takes ${expected}, got ${got}`),
  ];
  if (lost.length === 0) return texts;
  const total = report.matched.length + lost.length;
  const more = lost.length > shown ? `\n  ... and ${lost.length - shown} more; quad inspect --json lists all` : "";
  const list = lost.slice(0, shown).join("\n  ");
  return [
    ...texts,
    `adapter "${name}": ${lost.length} of ${total} keys have no effect on this model\n  ${list}${more}`,
  ];
}
