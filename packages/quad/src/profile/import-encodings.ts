import { readFile } from "node:fs/promises";
import { readAimet } from "../encodings-files/index.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import type { Encoding } from "../quantization/index.ts";
import type { Profile } from "../records/profile.ts";
import { tensorsOfPoints } from "./export-encodings.ts";

/** What {@link importEncodings} made of a file. */
export interface ImportedEncodings {
  profile: Profile;
  /** Points and slots that took an encoding from the file. */
  taken: number;
  /** Entries of the file that were not used, and why. */
  skipped: { name: string; reason: string }[];
}

/**
 * Replaces a profile's encodings of activations and adapter factors by those of an AIMET file, tensor by tensor. Widths stay
 * the profile's, and so do tensors that the file does not name; weights are the compiler's own.
 * @param exposed - folder that the profile was made for
 * @throws InputError if the file is not an AIMET file
 */
export async function importEncodings(exposed: string, profile: Profile, file: string): Promise<ImportedEncodings> {
  const model = await ExposedModel.open(exposed);
  const { slots } = model;
  const prepared = await model.prepare(profile.shape);
  const parameters = new Set([...prepared.graph.initializers].map(({ name }) => name));
  const isParameter = (name: string) => parameters.has(name);
  const { activations, skipped } = readAimet(await readFile(file, "utf8"), file, { isParameter });
  const points = { ...profile.points };
  const scales = { ...profile.slots };
  const used = new Set<string>();
  const reasons = new Map<string, string>();
  let taken = 0;
  const use = (tensor: string, refusal: string | null, take: (encoding: Encoding) => void) => {
    const encoding = activations.get(tensor);
    if (!encoding) return;
    if (refusal) {
      reasons.set(tensor, refusal);
      return;
    }
    take(encoding);
    used.add(tensor);
    taken++;
  };
  for (const [point, tensor] of tensorsOfPoints(prepared, slots)) {
    const before = points[point];
    if (!before) continue;
    use(tensor, refusePoint(activations.get(tensor), before.bits), ({ bits, signed, scale, zeroPoint }) => {
      // The same grid with codes from 0.
      const shift = signed ? 2 ** (bits - 1) : 0;
      points[point] = { bits: before.bits, scale: scale[0], zeroPoint: zeroPoint[0] + shift };
    });
  }
  for (const { name, inputA, inputB } of slots.slots) {
    for (const [side, tensor] of [
      ["a", inputA],
      ["b", inputB],
    ] as const) {
      use(tensor, refuseFactor(activations.get(tensor), profile.policy.adapterBits), ({ scale }) => {
        scales[name] = { ...scales[name], [side]: scale[0] };
      });
    }
  }
  for (const name of activations.keys()) {
    if (!used.has(name))
      skipped.push({ name, reason: reasons.get(name) ?? "the profile quantizes no such activation" });
  }
  return { profile: { ...profile, points, slots: scales }, taken, skipped };
}

function refusePoint(encoding: Encoding | undefined, bits: number): string | null {
  if (!encoding) return null;
  if (encoding.axis !== undefined) return "activations have one scale per tensor";
  return encoding.bits === bits ? null : `has ${encoding.bits} bits where the profile has ${bits}`;
}

function refuseFactor(encoding: Encoding | undefined, bits: number): string | null {
  if (!encoding) return null;
  if (encoding.axis !== undefined || !encoding.symmetric) return "adapter factors have one symmetric scale per tensor";
  return encoding.bits === bits ? null : `has ${encoding.bits} bits where the profile has ${bits}`;
}
