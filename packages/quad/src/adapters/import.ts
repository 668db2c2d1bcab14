import { InputError } from "@quad-lora/base";
import { openSafetensors, type SafetensorsReader } from "../files/safetensors.ts";
import { checkFactors, composeTucker, mergeProjections, type ProjectionFactors } from "./factors.ts";
import { type AdapterPart, parseKey } from "./keys.ts";
import { locateAdapter, readPeftConfig } from "./locate.ts";
import { type AdapterTarget, ModuleIndex } from "./module-index.ts";
import { configsFromMetadata, type PeftConfig } from "./peft-config.ts";
import type { AdaptableModule, AdapterComponent, AdapterFormat, AdapterLayer, ImportedAdapter } from "./types.ts";

type Writable<T> = { -readonly [K in keyof T]: T[K] extends readonly (infer E)[] ? E[] : T[K] };
type Report = Omit<Writable<ImportedAdapter["report"]>, "rankMin" | "rankMax">;

/** The tensors of one module as the file groups them. */
interface KeyGroup {
  readonly path: string;
  readonly keys: Partial<Record<AdapterPart, string>>;
  format?: AdapterFormat;
}

type ConfigOf = (component: AdapterComponent, format: AdapterFormat | undefined) => PeftConfig | undefined;

/** A problem with a layer's tensors that leaves the layer out. */
type Mismatch = { readonly expected: string; readonly got: string };

/**
 * Reads a LoRA of any common format: kohya / A1111 with LoCon, LyCORIS' LoCon, diffusers, PEFT.
 * @param path - A .safetensors file, or the folder of a PEFT or diffusers adapter.
 * @param modules - The model's adaptable modules: names in the file are looked up among names derived from theirs.
 * @param options.name - Name of the adapter; that of the file or folder by default.
 * @returns Layers with all scaling folded in, and a report of every key in the file.
 * @throws InputError for malformed files, for methods other than LoRA (LoHa, LoKr, DoRA, ...), for values that are not
 * finite, and where no layer at all fits the model.
 */
export async function importAdapter(
  path: string,
  modules: readonly AdaptableModule[],
  options: { name?: string } = {},
): Promise<ImportedAdapter> {
  const files = await locateAdapter(path);
  const reader = await openSafetensors(files.weights);
  try {
    const report: Report = { matched: [], unmatched: [], mismatched: [] };
    const groups = groupKeys(reader, report);
    const hasPeftKeys = groups.some(({ format }) => format === "peft");
    const fileConfig = files.config && hasPeftKeys ? await readPeftConfig(files.config) : undefined;
    const metadataConfig = configsFromMetadata(reader.metadata, reader.path);
    const configOf: ConfigOf = (component, format) =>
      format === "peft" || format === "diffusers"
        ? ((format === "peft" ? fileConfig : undefined) ?? metadataConfig(component))
        : undefined;
    const layers = await readLayers(reader, groups, new ModuleIndex(modules), configOf, report);
    if (layers.length === 0) throw nothingMatched(reader, modules, report);
    const ranks = layers.map(({ rank }) => rank);
    return {
      name: options.name ?? files.defaultName,
      source: path,
      format: mostFrequent(groups.flatMap(({ format }) => format ?? [])),
      layers,
      report: {
        ...report,
        rankMin: ranks.reduce((a, b) => Math.min(a, b)),
        rankMax: ranks.reduce((a, b) => Math.max(a, b)),
      },
    };
  } finally {
    await reader.close();
  }
}

function groupKeys(reader: SafetensorsReader, report: Report): KeyGroup[] {
  const groups = new Map<string, KeyGroup>();
  for (const key of reader.entries.keys()) {
    const parsed = parseKey(key);
    if (parsed.kind === "refused")
      throw new InputError({
        what: `${parsed.method} adapters are not supported`,
        file: reader.path,
        where: key,
        expected: "LoRA or LoCon",
        fix: "Convert it to a LoRA (by extracting one from the merged weights), or use another file.",
      });
    if (parsed.kind === "unsupported") {
      report.unmatched.push({ key, reason: parsed.reason });
      continue;
    }
    const group = groups.get(parsed.module) ?? { path: parsed.module, keys: {} };
    groups.set(parsed.module, group);
    const earlier = group.keys[parsed.part];
    if (earlier) {
      const got = `also ${earlier}`;
      report.mismatched.push({ key, module: parsed.module, expected: `one ${parsed.part} tensor`, got });
      continue;
    }
    group.keys[parsed.part] = key;
    group.format ??= parsed.format;
  }
  return [...groups.values()];
}

async function readLayers(
  reader: SafetensorsReader,
  groups: readonly KeyGroup[],
  index: ModuleIndex,
  configOf: ConfigOf,
  report: Report,
): Promise<AdapterLayer[]> {
  const layers: AdapterLayer[] = [];
  const claims = new Map<string, string>();
  const slices = new Map<AdaptableModule, { count: number; parts: ProjectionFactors[]; groups: KeyGroup[] }>();
  for (const group of groups) {
    const keys = Object.values(group.keys);
    if (!group.keys.down && !group.keys.up && !group.keys.mid) {
      for (const key of keys) report.unmatched.push({ key, reason: "an alpha without LoRA weights" });
      continue;
    }
    const resolution = index.resolve(group.path);
    if ("reason" in resolution) {
      for (const key of keys) report.unmatched.push({ key, reason: resolution.reason });
      continue;
    }
    const { target } = resolution;
    const targets = target.kind === "split" ? target.modules : [target.module];
    const module = targets.map(({ name }) => name).join(" + ");
    const { component } = targets[0];
    const config = configOf(component, group.format);
    const factors = findClaim(claims, target) ?? (await readFactors(reader, group, target, config));
    if ("expected" in factors) {
      for (const key of keys) report.mismatched.push({ key, module, ...factors });
      continue;
    }
    for (const claim of claimsOf(target)) claims.set(claim, group.path);
    if (target.kind === "slice") {
      const slice = slices.get(target.module) ?? { count: target.count, parts: [], groups: [] };
      slices.set(target.module, slice);
      slice.parts.push({ index: target.index, ...factors });
      slice.groups.push(group);
      continue;
    }
    for (const key of keys) report.matched.push({ key, module, component });
    const { rank, down, up } = factors;
    let row = 0;
    for (const { name, outFeatures } of targets) {
      layers.push({ component, module: name, rank, down, up: up.subarray(row * rank, (row + outFeatures) * rank) });
      row += outFeatures;
    }
  }
  for (const [{ component, name: module, outFeatures }, slice] of slices) {
    const merged = mergeProjections(slice.parts, slice.count, outFeatures);
    const keys = slice.groups.flatMap((group) => Object.values(group.keys));
    if ("expected" in merged) for (const key of keys) report.mismatched.push({ key, module, ...merged });
    else {
      for (const key of keys) report.matched.push({ key, module, component });
      layers.push({ component, module, ...merged });
    }
  }
  return layers;
}

/** What a target takes up: a slice leaves its module's other slices free, but no longer the whole. */
function claimsOf(target: AdapterTarget): string[] {
  if (target.kind === "slice") {
    const { component, name } = target.module;
    return [`${component}/${name} in part`, `${component}/${name} part ${target.index}`];
  }
  const modules = target.kind === "split" ? target.modules : [target.module];
  return modules.map(({ component, name }) => `${component}/${name}`);
}

/** A mismatch where another group of the file already adapts one of the target's modules. */
function findClaim(claims: ReadonlyMap<string, string>, target: AdapterTarget): Mismatch | undefined {
  const own = claimsOf(target);
  const conflicting =
    target.kind === "slice"
      ? [`${target.module.component}/${target.module.name}`, own[1]]
      : [...own, ...own.map((name) => `${name} in part`)];
  const other = conflicting.map((name) => claims.get(name)).find((path) => path !== undefined);
  return other === undefined ? undefined : { expected: "one adapter for a module", got: `also ${other}` };
}

/** Reads a group's tensors into `down [rank, ...]` and `up [out, rank]` with the scale folded into `up`. */
async function readFactors(
  reader: SafetensorsReader,
  group: KeyGroup,
  target: AdapterTarget,
  config: PeftConfig | undefined,
): Promise<{ rank: number; down: Float32Array; up: Float32Array } | Mismatch> {
  const { down: downKey, up: upKey, mid: midKey, alpha: alphaKey } = group.keys;
  if (!downKey || !upKey)
    return { expected: "a down and an up weight", got: `no ${downKey ? "up" : "down"} weight in the file` };
  const shapeOf = (key: string) => reader.entries.get(key)!.shape;
  const shapes = { down: shapeOf(downKey), up: shapeOf(upKey), mid: midKey ? shapeOf(midKey) : undefined };
  const check = checkFactors(shapes, target);
  if ("expected" in check) return check;
  const { rank, scaleRank } = check;

  let scale = 1;
  const names = [group.path.replace(/^(base_model\.model\.)+/, "")];
  if (target.kind !== "split") names.push(target.module.name);
  if (config && config.rankOf(names) !== scaleRank)
    return { expected: `rank ${config.rankOf(names)} by the adapter's configuration`, got: `rank ${scaleRank}` };
  if (alphaKey) {
    const alpha = await reader.readFloat32(alphaKey);
    assertFinite(alpha, reader.path, alphaKey);
    if (alpha.length !== 1) return { expected: "a single number as alpha", got: `[${shapeOf(alphaKey).join(", ")}]` };
    scale = config ? config.scale(alpha[0], scaleRank) : alpha[0] / scaleRank;
  } else if (config) scale = config.scale(config.alphaOf(names), scaleRank);

  let down = await readFinite(reader, downKey);
  if (midKey) {
    const mid = await readFinite(reader, midKey);
    down = composeTucker(mid, down, rank, scaleRank, down.length / scaleRank);
    assertFinite(down, reader.path, midKey);
  }
  const up = await readFinite(reader, upKey);
  if (scale === 1) return { rank, down, up };
  const scaled = up.map((value) => value * scale);
  assertFinite(scaled, reader.path, upKey);
  return { rank, down, up: scaled };
}

async function readFinite(reader: SafetensorsReader, key: string): Promise<Float32Array> {
  refuseIntegers(reader, key);
  const values = await reader.readFloat32(key);
  assertFinite(values, reader.path, key);
  return values;
}

/** Integers in place of weights are codes of some quantization, whose scales the file does not hold. */
function refuseIntegers(reader: SafetensorsReader, key: string): void {
  const { dtype } = reader.entries.get(key)!;
  if (!/^(I|U)\d+$|^BOOL$/.test(dtype)) return;
  throw new InputError({
    what: "the adapter's weights are integers",
    file: reader.path,
    where: key,
    expected: "F32, F16 or BF16",
    got: dtype,
    fix: "Use the file as it was trained, before any quantization.",
  });
}

function assertFinite(values: Float32Array, file: string, key: string): void {
  for (let i = 0; i < values.length; i++)
    if (!Number.isFinite(values[i]))
      throw new InputError({
        what: "the adapter's weights are not finite",
        file,
        where: key,
        got: `${values[i]} at element ${i}`,
        fix: "The training overflowed or the file is damaged: use another checkpoint.",
      });
}

function nothingMatched(reader: SafetensorsReader, modules: readonly AdaptableModule[], report: Report): InputError {
  const keys = [...reader.entries.keys()].slice(0, 3);
  const names = modules.slice(0, 3).map(({ component, name }) => `${component}.${name}`);
  const misfit = report.mismatched[0];
  return new InputError({
    what: "no layer of this adapter fits the model",
    file: reader.path,
    where: misfit?.key,
    expected: misfit?.expected ?? `keys for modules such as ${names.join(", ") || "(the model has no adaptable ones)"}`,
    got: misfit?.got ?? (keys.join(", ") || "a file without tensors"),
    fix: "Check that it is a LoRA, that it was made for this model's architecture (SD 1.5, SDXL, ...), and that the model exposes the modules it adapts.",
  });
}

function mostFrequent(formats: readonly AdapterFormat[]): AdapterFormat {
  const counts = new Map<AdapterFormat, number>();
  for (const format of formats) counts.set(format, (counts.get(format) ?? 0) + 1);
  return [...counts].reduce((best, entry) => (entry[1] > best[1] ? entry : best))[0];
}
