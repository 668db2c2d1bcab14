import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import {
  alphaSigma,
  createScheduler,
  parseSchedulerConfig,
  parseSchedulerConfigText,
  schedulerClasses,
} from "./index.ts";

function problemOf(action: () => unknown): InputError {
  try {
    action();
  } catch (error) {
    if (error instanceof InputError) return error;
    throw error;
  }
  throw new Error("no InputError was thrown");
}

describe("published configurations", () => {
  test("Stable Diffusion 1.5", () => {
    const scheduler = createScheduler(
      {
        _class_name: "PNDMScheduler",
        _diffusers_version: "0.6.0",
        beta_end: 0.012,
        beta_schedule: "scaled_linear",
        beta_start: 0.00085,
        num_train_timesteps: 1000,
        set_alpha_to_one: false,
        skip_prk_steps: true,
        steps_offset: 1,
        trained_betas: null,
        clip_sample: false,
      },
      50,
    );
    expect(scheduler.timesteps.slice(0, 4)).toEqual([981, 961, 961, 941]);
    expect(scheduler.timesteps).toHaveLength(51);
  });

  test("Stable Diffusion XL", () => {
    const config = parseSchedulerConfig({
      _class_name: "EulerDiscreteScheduler",
      _diffusers_version: "0.19.0.dev0",
      beta_end: 0.012,
      beta_schedule: "scaled_linear",
      beta_start: 0.00085,
      clip_sample: false,
      interpolation_type: "linear",
      num_train_timesteps: 1000,
      prediction_type: "epsilon",
      sample_max_value: 1.0,
      set_alpha_to_one: false,
      skip_prk_steps: true,
      steps_offset: 1,
      timestep_spacing: "leading",
      trained_betas: null,
      use_karras_sigmas: false,
    });
    expect(config.timestep_spacing).toBe("leading");
  });
});

test("defaults are those of the class in diffusers", () => {
  const defaults = (name: string) => parseSchedulerConfig({ _class_name: name });
  expect(defaults("DDIMScheduler")).toMatchObject({
    beta_schedule: "linear",
    beta_start: 0.0001,
    beta_end: 0.02,
    clip_sample: true,
    set_alpha_to_one: true,
    timestep_spacing: "leading",
  });
  expect(defaults("PNDMScheduler")).toMatchObject({
    set_alpha_to_one: false,
    skip_prk_steps: false,
    timestep_spacing: "leading",
  });
  expect(defaults("LCMScheduler")).toMatchObject({ beta_schedule: "scaled_linear", original_inference_steps: 50 });
  expect(defaults("HeunDiscreteScheduler")).toMatchObject({ beta_start: 0.00085, timestep_spacing: "linspace" });
  expect(defaults("TCDScheduler")).toMatchObject({ beta_end: 0.012, beta_schedule: "scaled_linear" });
  expect(defaults("FlowMatchEulerDiscreteScheduler")).toMatchObject({ shift: 1, prediction_type: "flow_prediction" });
  expect(defaults("UniPCMultistepScheduler")).toMatchObject({ solver_order: 2, lower_order_final: true });
});

test("options of other classes are left alone, as in diffusers", () => {
  const config = { _class_name: "EulerDiscreteScheduler", skip_prk_steps: true, solver_order: 3, shift: 3 };
  expect(() => parseSchedulerConfig(config)).not.toThrow();
});

describe("refuses what it does not implement", () => {
  test.each([
    ["DDIMScheduler", "thresholding", true],
    ["DDIMScheduler", "use_karras_sigmas", true],
    ["DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"],
    ["DPMSolverMultistepScheduler", "clip_sample", true],
    ["DPMSolverMultistepScheduler", "use_lu_lambdas", true],
    ["DPMSolverMultistepScheduler", "variance_type", "learned_range"],
    ["EulerDiscreteScheduler", "interpolation_type", "log_linear"],
    ["EulerDiscreteScheduler", "timestep_type", "continuous"],
    ["EulerDiscreteScheduler", "use_beta_sigmas", true],
    ["FlowMatchEulerDiscreteScheduler", "invert_sigmas", true],
    ["FlowMatchEulerDiscreteScheduler", "prediction_type", "epsilon"],
    ["FlowMatchEulerDiscreteScheduler", "use_beta_sigmas", true],
    ["LCMScheduler", "an_option_of_tomorrow", true],
    ["PNDMScheduler", "prediction_type", "sample"],
    ["PNDMScheduler", "rescale_betas_zero_snr", true],
    ["UniPCMultistepScheduler", "predict_x0", false],
    ["PNDMScheduler", "use_flow_sigmas", true],
    ["TCDScheduler", "clip_sample", true],
  ])("%s %s", (name, key, value) => {
    const error = problemOf(() => parseSchedulerConfig({ _class_name: name, [key]: value }, "scheduler_config.json"));
    expect(error.message).toContain(`scheduler_config.json: ${key}: `);
    expect(error.message).toContain(JSON.stringify(value));
    expect(error.message).not.toContain("\n");
  });

  test("unless it is switched off or a note", () => {
    const config = {
      _class_name: "EulerDiscreteScheduler",
      _note: "mine",
      thresholding: false,
      use_beta_sigmas: false,
      an_option_of_tomorrow: false,
      variance_type: null,
    };
    expect(() => parseSchedulerConfig(config)).not.toThrow();
  });
});

describe("refuses what is wrong", () => {
  test.each([
    [{ _class_name: "DDPMScheduler" }, schedulerClasses[0]],
    [{}, "_class_name"],
    [null, "object"],
    [[], "array"],
    [{ _class_name: "DDIMScheduler", beta_start: "0.1" }, "beta_start"],
    [{ _class_name: "DDIMScheduler", beta_schedule: "sigmoid" }, "beta_schedule"],
    [{ _class_name: "DDIMScheduler", num_train_timesteps: 0 }, "num_train_timesteps"],
    [{ _class_name: "DDIMScheduler", trained_betas: [0.1, 0.2] }, "trained_betas"],
    [{ _class_name: "DPMSolverMultistepScheduler", solver_order: 4 }, "solver_order"],
  ])("%j", (config, named) => {
    expect(problemOf(() => parseSchedulerConfig(config)).message).toContain(named);
  });

  test("steps", () => {
    for (const steps of [0, 1.5, 1001, Number.NaN]) {
      expect(problemOf(() => createScheduler({ _class_name: "DDIMScheduler" }, steps)).message).toContain("steps");
    }
    expect(problemOf(() => createScheduler({ _class_name: "LCMScheduler" }, 51)).message).toContain("50");
    expect(problemOf(() => createScheduler({ _class_name: "PNDMScheduler" }, 3)).message).toContain("skip_prk_steps");
    const offset = { _class_name: "DDIMScheduler", steps_offset: 1 };
    expect(problemOf(() => createScheduler(offset, 1000)).message).toContain("steps_offset");
  });

  test("flow noise levels for a model that does not predict a flow, and the other way round", () => {
    const flow = { _class_name: "DPMSolverMultistepScheduler", use_flow_sigmas: true };
    expect(problemOf(() => createScheduler(flow, 4)).message).toContain("prediction_type");
    const predicts = { _class_name: "UniPCMultistepScheduler", prediction_type: "flow_prediction" };
    expect(problemOf(() => createScheduler(predicts, 4)).message).toContain("use_flow_sigmas");
    const both = { ...flow, prediction_type: "flow_prediction", use_karras_sigmas: true };
    expect(problemOf(() => createScheduler(both, 4)).message).toContain("use_karras_sigmas");
  });

  test("a shift by the picture's tokens where nobody says how many it has", () => {
    const config = { _class_name: "FlowMatchEulerDiscreteScheduler", use_dynamic_shifting: true };
    expect(problemOf(() => createScheduler(config, 4)).message).toContain("use_dynamic_shifting");
    expect(() => createScheduler(config, 4, { imageTokens: 256 })).not.toThrow();
  });

  test("epsilon at zero signal-to-noise ratio", () => {
    const config = { _class_name: "DDIMScheduler", rescale_betas_zero_snr: true };
    expect(problemOf(() => createScheduler(config, 4)).message).toContain("rescale_betas_zero_snr");
    expect(() => createScheduler({ ...config, prediction_type: "v_prediction" }, 4)).not.toThrow();
  });
});

describe("text as Python writes it", () => {
  test("has infinities", () => {
    const text = '{"lambda_min_clipped": -Infinity, "a": [Infinity, NaN, 1e3], "b": "-Infinity, \\"NaN\\""}';
    expect(parseSchedulerConfigText(text)).toEqual({
      lambda_min_clipped: Number.NEGATIVE_INFINITY,
      a: [Number.POSITIVE_INFINITY, null, 1000],
      b: '-Infinity, "NaN"',
    });
    const config = { _class_name: "DPMSolverMultistepScheduler", lambda_min_clipped: Number.NEGATIVE_INFINITY };
    expect(() => createScheduler(config, 10)).not.toThrow();
  });

  test("is refused when it is not JSON", () => {
    expect(problemOf(() => parseSchedulerConfigText("{", "a.json")).message).toContain("a.json");
  });
});

describe("noise levels at the ends", () => {
  const base = { _class_name: "DPMSolverMultistepScheduler", prediction_type: "sample" };
  const lastState = (config: Record<string, unknown>) => {
    const scheduler = createScheduler(config, 20);
    const sample = Float32Array.of(3);
    scheduler.step(Float32Array.of(0.25), 19, sample, sample);
    return sample[0];
  };

  test("final_sigmas_type zero ends on the predicted x0, also at full order", () => {
    for (const name of ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]) {
      for (const use_karras_sigmas of [false, true]) {
        const config = { ...base, _class_name: name, use_karras_sigmas, lower_order_final: false };
        expect(lastState({ ...config, final_sigmas_type: "zero" })).toBe(0.25);
        expect(lastState(config)).not.toBe(0.25);
      }
    }
  });

  test("Euler ends on x0, or with final_sigmas_type sigma_min on the lowest level of the schedule", () => {
    const config = { ...base, _class_name: "EulerDiscreteScheduler" };
    expect(lastState(config)).toBe(0.25);
    const { alpha, sigma } = alphaSigma(config)(0);
    // The state 3 is 0.25 and noise at the level of timestep 0, the last one: what it ends on is that state.
    expect(lastState({ ...config, final_sigmas_type: "sigma_min" })).toBeCloseTo(3, 5);
    const scheduler = createScheduler({ ...config, timestep_spacing: "trailing", final_sigmas_type: "sigma_min" }, 4);
    const level = alphaSigma(config)(scheduler.timesteps[3]);
    const out = new Float32Array(1);
    scheduler.step(Float32Array.of(0.25), 3, Float32Array.of(3), out);
    const noise = (3 - 0.25) / (level.sigma / level.alpha);
    expect(out[0]).toBeCloseTo(0.25 + (sigma / alpha) * noise, 5);
  });

  test("lambda_min_clipped drops the noisiest timesteps", () => {
    const all = createScheduler(base, 20);
    const clipped = createScheduler({ ...base, beta_schedule: "squaredcos_cap_v2", lambda_min_clipped: -5.1 }, 20);
    expect(all.timesteps[0]).toBe(999);
    // alpha_t = cos(pi/2 (t + 0.008) / 1.008) falls to e^-5.1 near t = 0.9961.
    expect(clipped.timesteps[0]).toBe(995);
  });
});
