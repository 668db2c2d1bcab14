import { InputError } from "@quad-lora/base";
import * as z from "zod";

/** What a scheduler's model predicts: the noise, the velocity `alpha * noise - sigma * x0`, or `x0` itself. */
export type PredictionType = "epsilon" | "v_prediction" | "sample";

/** Values of `_class_name` that {@link parseSchedulerConfig} accepts. */
export const schedulerClasses = [
  "DDIMScheduler",
  "DPMSolverMultistepScheduler",
  "EulerAncestralDiscreteScheduler",
  "EulerDiscreteScheduler",
  "HeunDiscreteScheduler",
  "LCMScheduler",
  "PNDMScheduler",
  "UniPCMultistepScheduler",
] as const;

/** diffusers class names of the schedulers that there are. */
export type SchedulerClass = (typeof schedulerClasses)[number];

const positive = z.number().positive();

/**
 * Keys of `scheduler_config.json` with the defaults that diffusers 0.24 gives to most classes;
 * {@link classDefaults} lists where a class differs. Keys that a class does not read are left alone, as diffusers does.
 */
const configSchema = z.object({
  _class_name: z.enum(schedulerClasses),
  num_train_timesteps: z.number().int().min(2).default(1000),
  beta_start: positive.lt(1).default(0.0001),
  beta_end: positive.lt(1).default(0.02),
  beta_schedule: z.enum(["linear", "scaled_linear", "squaredcos_cap_v2"]).default("linear"),
  /** One beta per training timestep; replaces `beta_start`, `beta_end` and `beta_schedule`. */
  trained_betas: z.array(z.number().min(0).max(1)).optional(),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]).default("epsilon"),
  timestep_spacing: z.enum(["leading", "linspace", "trailing"]).default("linspace"),
  /** Added to every timestep of the "leading" spacing. */
  steps_offset: z.number().int().min(0).default(0),
  /** Whether the cumulative alpha after the last step is 1, or that of timestep 0. */
  set_alpha_to_one: z.boolean().default(true),
  rescale_betas_zero_snr: z.boolean().default(false),
  clip_sample: z.boolean().default(false),
  clip_sample_range: positive.default(1),
  use_karras_sigmas: z.boolean().default(false),
  /** Bounds of the Karras sigmas; without them, those of the schedule. */
  sigma_min: positive.optional(),
  sigma_max: positive.optional(),
  /** PNDM only: start with the linear multistep method instead of Runge-Kutta steps. */
  skip_prk_steps: z.boolean().default(false),
  solver_order: z.number().int().min(1).max(3).default(2),
  algorithm_type: z.string().default("dpmsolver++"),
  solver_type: z.enum(["midpoint", "heun", "logrho", "bh1", "bh2"]).optional(),
  lower_order_final: z.boolean().default(true),
  euler_at_final: z.boolean().default(false),
  /**
   * Noise level after the last step. Diffusers from 0.25 on always writes this key, so a file without it comes
   * from an older version, which meant "sigma_min".
   */
  final_sigmas_type: z.enum(["zero", "sigma_min"]).optional(),
  /** DPM-Solver only: the schedule starts at the first log signal-to-noise ratio that reaches this. */
  lambda_min_clipped: z.number().or(z.literal(Number.NEGATIVE_INFINITY)).default(Number.NEGATIVE_INFINITY),
  /** UniPC only: steps after which the corrector stays off. */
  disable_corrector: z.array(z.number().int()).default([]),
  original_inference_steps: z.number().int().min(1).default(50),
  timestep_scaling: positive.default(10),
});

/** A checked `scheduler_config.json` with the defaults of its class filled in. */
export type SchedulerConfig = z.infer<typeof configSchema>;

const classDefaults: Partial<Record<SchedulerClass, Partial<SchedulerConfig>>> = {
  DDIMScheduler: { clip_sample: true, timestep_spacing: "leading" },
  HeunDiscreteScheduler: { beta_start: 0.00085, beta_end: 0.012 },
  LCMScheduler: { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear" },
  PNDMScheduler: { set_alpha_to_one: false, timestep_spacing: "leading" },
};

/** Options that change the result when switched on, with the classes that implement them here. */
const switches: Record<string, readonly SchedulerClass[]> = {
  clip_sample: ["DDIMScheduler", "HeunDiscreteScheduler", "LCMScheduler"],
  rescale_betas_zero_snr: [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "UniPCMultistepScheduler",
  ],
  thresholding: [],
  use_beta_sigmas: [],
  use_dynamic_shifting: [],
  use_exponential_sigmas: [],
  use_flow_sigmas: [],
  use_karras_sigmas: [
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
  ],
  use_lu_lambdas: [],
};

/** Options of which one value is implemented, by the classes that read them. */
const fixedOptions: Partial<Record<SchedulerClass, Record<string, readonly unknown[]>>> = {
  DPMSolverMultistepScheduler: { algorithm_type: ["dpmsolver++"], variance_type: [] },
  EulerDiscreteScheduler: {
    final_sigmas_type: ["zero"],
    interpolation_type: ["linear"],
    timestep_type: ["discrete"],
  },
  PNDMScheduler: { prediction_type: ["epsilon", "v_prediction"] },
  UniPCMultistepScheduler: { predict_x0: [true], solver_p: [] },
};

/** Keys without effect on the classes here, unless {@link switches} or {@link fixedOptions} says otherwise. */
const inertKeys = new Set([
  "dynamic_thresholding_ratio",
  "flow_shift",
  "interpolation_type",
  "predict_x0",
  "sample_max_value",
  "time_shift_type",
  "timestep_type",
  "variance_type",
]);

/**
 * Reads the text of a `scheduler_config.json`. Python writes infinities as bare words, which JSON does not allow
 * (`"lambda_min_clipped": -Infinity` is common); they become numbers here and `NaN` becomes null.
 * @throws InputError when the text is not JSON
 */
export function parseSchedulerConfigText(text: string, file?: string): unknown {
  const standard = text.replace(/"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g, (token) => {
    if (token.startsWith('"')) return token;
    if (token === "NaN") return "null";
    return token.startsWith("-") ? "-1e999" : "1e999";
  });
  try {
    return JSON.parse(standard);
  } catch (error) {
    throw new InputError({ what: `not JSON: ${(error as Error).message}`, file, fix: "Restore the file." });
  }
}

/**
 * Checks the content of a `scheduler_config.json` and fills in the defaults of its class.
 * Null counts as absent, keys that start with an underscore are notes.
 * @throws InputError on an unknown class, a wrong value, or an option that is switched on and not implemented
 */
export function parseSchedulerConfig(config: unknown, file?: string): SchedulerConfig {
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new InputError({
      what: "scheduler configuration is not an object",
      file,
      expected: "the content of scheduler_config.json",
      got: Array.isArray(config) ? "an array" : String(config),
    });
  }
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null && value !== undefined));
  const name = given._class_name as SchedulerClass;
  const parsed = configSchema.safeParse({ ...classDefaults[name], ...given });
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const key = issue.path.join(".");
    throw new InputError({
      what: key === "_class_name" ? "unknown scheduler class" : issue.message,
      file,
      where: key,
      ...(key === "_class_name" ? { expected: `one of ${schedulerClasses.join(", ")}` } : {}),
      got: JSON.stringify(given[String(issue.path[0])]) ?? "nothing",
    });
  }
  refuseUnsupported(name, given, file);
  checkBetas(parsed.data, file);
  return parsed.data;
}

function refuseUnsupported(name: SchedulerClass, given: Record<string, unknown>, file: string | undefined): void {
  for (const [key, value] of Object.entries(given)) {
    const implemented = switches[key];
    if (implemented) {
      if (value === false || implemented.includes(name)) continue;
      throw new InputError({
        what: `${name} does not implement ${key} here`,
        file,
        where: key,
        expected: "false",
        got: JSON.stringify(value),
        fix: "Switch it off or choose another scheduler class.",
      });
    }
    const allowed = fixedOptions[name]?.[key];
    if (allowed && !allowed.includes(value)) {
      throw new InputError({
        what: `${name} does not implement this ${key} here`,
        file,
        where: key,
        expected: allowed.length > 0 ? allowed.map((option) => JSON.stringify(option)).join(" or ") : "null",
        got: JSON.stringify(value),
        fix: "Change it or choose another scheduler class.",
      });
    }
    if (allowed || key in configSchema.shape || key.startsWith("_") || inertKeys.has(key) || value === false) continue;
    throw new InputError({
      what: "unknown scheduler option",
      file,
      where: key,
      got: JSON.stringify(value),
      fix: "Remove it if the scheduler does not need it.",
    });
  }
}

function checkBetas(config: SchedulerConfig, file: string | undefined): void {
  const { trained_betas: betas, num_train_timesteps: count } = config;
  if (betas && betas.length !== count) {
    throw new InputError({
      what: "wrong number of trained betas",
      file,
      where: "trained_betas",
      expected: `${count} (num_train_timesteps)`,
      got: String(betas.length),
    });
  }
}
