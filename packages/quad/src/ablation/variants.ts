import type { PolicyInput } from "../settings/policy.ts";

/** Whose ranges and scales a task runs on: its own, the anchor's, or those merged from all tasks. */
export type ProfileKind = "own" | "anchor" | "unified";

/** One way to quantize: a row of the ablation table. */
export interface Variant {
  name: string;
  /** `profiles`: what sharing a profile and narrow layers cost. `everything`: what a model with 8 bits everywhere suffers from. */
  study: "profiles" | "everything";
  profile: ProfileKind;
  /** What differs from the configuration's policy; without a share, no layer is narrow. */
  policy: Pick<PolicyInput, "align" | "narrowShare" | "narrowEverything" | "narrowRange" | "balanceSteps" | "keepWide">;
  /** Round the angles of the time step's embedding too. */
  roundPhases?: boolean;
}

const shares = [0, 0.4, 0.8, 1];

/** Name of a share of narrow layers, as the paper's table has it. */
function widthName(share: number): string {
  return share === 0 ? "W8A16" : `W8A8 ${100 * share} %`;
}

/** The layers that a UNet's 8-bit noise comes from first, though they are few: what reads latents, and 1x1 skips. */
const firstLayer = "^conv_in$";
const shortcuts = "conv_shortcut";

/** Every profile with every share; the shared ones also without alignment at both ends. */
function profileVariants(): Variant[] {
  const variants: Variant[] = [];
  for (const profile of ["own", "anchor", "unified"] as const) {
    for (const narrowShare of shares) {
      const name = `${profile}, ${widthName(narrowShare)}`;
      variants.push({ name, study: "profiles", profile, policy: { narrowShare, align: true } });
      if (profile === "own" || (narrowShare > 0 && narrowShare < 1)) continue;
      const policy = { narrowShare, align: false };
      variants.push({ name: `${name}, not aligned`, study: "profiles", profile, policy });
    }
  }
  const mse = { kind: "mse", clipWeight: 1 } as const;
  const ranges: [string, Variant["policy"]][] = [
    ["min-max", { narrowRange: { kind: "min-max" } }],
    ["99.99 %", { narrowRange: { kind: "percentile", p: 99.99 }, balanceSteps: false }],
    ["MSE", { narrowRange: mse, balanceSteps: false }],
    ["MSE, time steps balanced", { narrowRange: mse, balanceSteps: true }],
  ];
  const kept: [string, string[]][] = [
    ["conv_in wide", [firstLayer]],
    ["conv_in and shortcuts wide", [firstLayer, shortcuts]],
  ];
  for (const [name, keepWide] of kept) {
    const policy = { narrowShare: 1, keepWide };
    variants.push({ name: `unified, W8A8, ${name}`, study: "profiles", profile: "unified", policy });
  }
  for (const [name, policy] of ranges) {
    variants.push({
      name: `unified, W8A8 100 %, ranges ${name}`,
      study: "profiles",
      profile: "unified",
      policy: { narrowShare: 1, ...policy },
    });
  }
  return variants;
}

/** Sums of the residual stream and skip connections; what the denoiser takes in and gives out. */
const residualStream = [
  "(resnets|attentions|transformer_blocks)\\.\\d+/Add(_\\d+)?_output",
  "blocks\\.\\d+/Concat",
  shortcuts,
];
const ends = ["^(sample|out_sample|latent)", "^/?conv_(in|out)\\b"];

/** From the collapse of a fully 8-bit model, one measure after the other. */
function everythingVariants(): Variant[] {
  const row = (name: string, policy: Variant["policy"], roundPhases = false): Variant => ({
    name: `all 8 bits, ${name}`,
    study: "everything",
    profile: "unified",
    policy: { narrowShare: 1, narrowEverything: true, ...policy },
    ...(roundPhases ? { roundPhases } : {}),
  });
  const minMax = { narrowRange: { kind: "min-max" } } as const;
  const weighted = { narrowRange: { kind: "mse", clipWeight: 4 }, balanceSteps: true } as const;
  return [
    row("min-max, time step too", minMax, true),
    row("min-max", minMax),
    row("clipping weighed", weighted),
    row("clipping weighed, ends wide", { ...weighted, keepWide: ends }),
    row("clipping weighed, ends and residual stream wide", { ...weighted, keepWide: [...ends, ...residualStream] }),
  ];
}

/** All rows of the table, in its order. */
export function ablationVariants(): Variant[] {
  return [...profileVariants(), ...everythingVariants()];
}
