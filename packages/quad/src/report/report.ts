import { writeFileAtomically } from "../files/atomic.ts";
import type { ReportOptions } from "./options.ts";

/**
 * Stage: `evaluation.json` with its pictures, profile and curves -> one HTML file that needs nothing else. Parts whose data
 * is missing are left out; the report says how to get them.
 *
 * @throws InputError when a file is missing or of another format
 */
export async function writeReport(evaluationFile: string, options: ReportOptions): Promise<void> {
  // Charts bring libraries along that nothing else needs.
  const { renderReport } = await import("./render.ts");
  await writeFileAtomically(options.out, (await renderReport(evaluationFile, options)).text);
}
