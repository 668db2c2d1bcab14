import type { Node, Value } from "@quad-lora/onnx";

/**
 * Module path of a layer as PyTorch names it (`down_blocks.0.attentions.0.proj_in`), from what exporters leave behind:
 * - TorchScript: node names carry the path (`/down_blocks.0/attentions.0/proj_in/Conv`), linear weights are anonymous;
 * - dynamo: initializers carry it (`down_blocks.0.attentions.0.proj_in.weight`), or the node's name scopes do.
 * Null where none of them does.
 */
export function moduleName(node: Node, weight: Value): string | null {
  const fromWeight = nameFromWeight(weight.name);
  const fromPath = nameFromPath(node);
  if (fromPath && fromWeight) return isRepeatedCall(fromPath, fromWeight) ? fromWeight : fromPath;
  if (fromPath) return fromPath;
  const fromScopes = nameFromScopes(node);
  // A tied weight carries the name of one of its modules, and the scopes say which one runs here. Where the weight
  // belongs to the scope itself or to a part of it (`F.linear` with a parameter), it is the more exact of the two.
  const isWithin = !fromScopes || !fromWeight || `${fromWeight}.`.startsWith(`${fromScopes}.`);
  return isWithin ? (fromWeight ?? fromScopes) : fromScopes;
}

/**
 * Whether `path` is the module `name` or a later call of it: TorchScript numbers repeated calls of a module or of one
 * around it `name_1`, `name_2`.
 */
export function isRepeatedCall(path: string, name: string): boolean {
  const segments = path.split(".");
  const own = name.split(".");
  return (
    segments.length === own.length &&
    segments.every((segment, index) => segment === own[index] || segment.replace(/_\d+$/, "") === own[index])
  );
}

/**
 * Path of the module that a node runs in (`down_blocks.0.resnets.1` for an Add between its layers), without wrappers around the
 * whole network; null where the exporter left no trace of it.
 */
export function modulePath(node: Node): string | null {
  const path = nameFromPath(node) ?? nameFromScopes(node);
  const segments = path?.split(".") ?? [];
  while (segments.length > 1 && wrappers.includes(segments[0])) segments.shift();
  return segments.join(".") || null;
}

function nameFromWeight(name: string): string | null {
  if (name.includes("::") || name.includes("/")) return null;
  return /^(.+)\.weight(_transposed|\.T|_t)?$/.exec(name)?.[1] ?? null;
}

function nameFromPath(node: Node): string | null {
  const segments = node.name.split("/").filter(Boolean);
  if (!node.name.startsWith("/") || segments.length < 2) return null;
  const operator = segments.pop()!;
  return operator === node.opType || operator.startsWith(`${node.opType}_`) ? segments.join(".") : null;
}

/** PyTorch's dynamo exporter writes the module stack as a Python list: `['', 'down_blocks.0', ..., 'linear_3']`. */
function nameFromScopes(node: Node): string | null {
  const properties = (node.extra as { metadataProps?: { key: string; value: string }[] } | null)?.metadataProps;
  const scopes = properties?.find(({ key }) => key === "pkg.torch.onnx.name_scopes")?.value;
  const names = [...(scopes?.matchAll(/'([^']*)'/g) ?? [])].map((match) => match[1]);
  // A later call of a module is `name@1` there.
  return names.length >= 2 ? names[names.length - 2].replace(/@\d+/g, "") || null : null;
}

/**
 * Writes layers' names into their nodes' names, as TorchScript does, where these do not carry them: weights that do are
 * replaced when constants are folded.
 */
export function keepModuleNames(layers: readonly { name: string; calls: readonly { node: Node }[] }[]): void {
  for (const { name, calls } of layers) {
    for (const [index, { node }] of calls.entries()) {
      if (nameFromPath(node) !== null) continue;
      node.name = `/${name.replaceAll(".", "/")}/${node.opType}${index > 0 ? `_${index}` : ""}`;
    }
  }
}

/** Wrappers that exporters put around the whole network; adapter files do not know them. */
const wrappers = ["unet", "transformer", "text_encoder", "model", "module", "_orig_mod", "inner_model"];

/** Strips wrapper names that every module shares (`unet.down_blocks...`, `model.unet.down_blocks...`). */
export function stripWrappers(names: readonly string[]): string[] {
  let stripped = [...names];
  for (let again = names.length > 0; again; ) {
    const head = stripped[0].split(".")[0];
    again = wrappers.includes(head) && stripped.every((name) => name.startsWith(`${head}.`));
    if (again) stripped = stripped.map((name) => name.slice(head.length + 1));
  }
  return stripped;
}
