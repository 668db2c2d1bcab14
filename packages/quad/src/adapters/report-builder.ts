import type { AdapterReport } from "./types.ts";

type Writable<T> = { -readonly [K in keyof T]: T[K] extends readonly (infer E)[] ? E[] : T[K] };

/** A report that is being written: of one file, or of all parts of an adapter. */
export type ReportBuilder = Omit<Writable<AdapterReport>, "rankMin" | "rankMax">;

export const emptyReport = (): ReportBuilder => ({ matched: [], unmatched: [], mismatched: [], warnings: [] });

/** Adds a part's report; keys get the part's name, as parts may use the same ones. */
export function addReport(target: ReportBuilder, part: ReportBuilder, name: string | undefined): void {
  const named = <T extends { key: string }>(entry: T): T => (name ? { ...entry, key: `${name}/${entry.key}` } : entry);
  target.matched.push(...part.matched.map(named));
  target.unmatched.push(...part.unmatched.map(named));
  target.mismatched.push(...part.mismatched.map(named));
  target.warnings.push(...part.warnings.map((text) => (name ? `${name}: ${text}` : text)));
}
