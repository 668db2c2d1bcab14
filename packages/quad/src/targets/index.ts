import { InputError } from "@quad-lora/base";
import { cpu } from "./cpu/cpu.ts";
import { npu } from "./npu/npu.ts";
import type { Target } from "./target.ts";

/** Every target there is. */
const targets = [cpu, npu] as const;

/** What a target is called in configurations, profiles and manifests. */
export type TargetName = (typeof targets)[number]["name"];

/** Names of all targets, for schemas and the command line. */
export const targetNames: readonly TargetName[] = targets.map(({ name }) => name);

/** What a configuration is for that does not say. */
export const defaultTarget: TargetName = cpu.name;

/** The target that rounds every activation: studies of what quantization does to a model simulate it. */
export const strictestTarget: TargetName = npu.name;

/** @throws InputError if there is no target of this name */
export function targetNamed(name: string): Target {
  const target = targets.find((candidate) => candidate.name === name);
  if (target) return target;
  throw new InputError({
    what: "there is no such target",
    expected: targetNames.map((known) => `"${known}"`).join(" or "),
    got: `"${name}"`,
    fix: "Set one of these in the configuration.",
  });
}
