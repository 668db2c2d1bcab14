import { describe, expect, test } from "vitest";
import { block, flatQ, importSpecs, q, ramp, reported, type Spec, scaled } from "./testing.ts";

describe("one layer in every format", () => {
  const down = ramp(8);
  const up = ramp(8, 2);
  const cases: [string, Spec[], number, string][] = [
    [
      "kohya",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.lora_up.weight`, [4, 2], up],
        [`${flatQ}.alpha`, [], Float32Array.of(1)],
      ],
      0.5,
      "kohya",
    ],
    [
      "kohya without alpha",
      [
        [`${flatQ}.lora_down.weight`, [2, 4]],
        [`${flatQ}.lora_up.weight`, [4, 2], up],
      ],
      1,
      "kohya",
    ],
    [
      "kohya, F16",
      [
        [`${flatQ}.lora_down.weight`, [2, 4], down, "F16"],
        [`${flatQ}.lora_up.weight`, [4, 2], up, "F16"],
        [`${flatQ}.alpha`, [1], Float32Array.of(8), "F16"],
      ],
      4,
      "kohya",
    ],
    [
      "kohya, BF16 and F64",
      [
        [`${flatQ}.lora_down.weight`, [2, 4], down, "BF16"],
        [`${flatQ}.lora_up.weight`, [4, 2], up, "F64"],
      ],
      1,
      "kohya",
    ],
    [
      "kohya with sgm names",
      ["down", "up"].map(
        (side): Spec => [
          `lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_${side}.weight`,
          side === "down" ? [2, 4] : [4, 2],
          side === "down" ? down : up,
        ],
      ),
      1,
      "kohya",
    ],
    [
      "LyCORIS",
      [
        [`${flatQ.replace("lora_unet", "lycoris")}.lora_down.weight`, [2, 4]],
        [`${flatQ.replace("lora_unet", "lycoris")}.lora_up.weight`, [4, 2], up],
      ],
      1,
      "lycoris",
    ],
    [
      "diffusers' processors",
      [
        [`unet.${block}.attn1.processor.to_q_lora.down.weight`, [2, 4]],
        [`unet.${block}.attn1.processor.to_q_lora.up.weight`, [4, 2], up],
      ],
      1,
      "diffusers",
    ],
    [
      "diffusers",
      [
        [`unet.${q}.lora.down.weight`, [2, 4]],
        [`unet.${q}.lora.up.weight`, [4, 2], up],
        [`unet.${q}.alpha`, [], Float32Array.of(6)],
      ],
      3,
      "diffusers",
    ],
    [
      "diffusers' linear layers",
      [
        [`unet.${q}.lora_linear_layer.down.weight`, [2, 4]],
        [`unet.${q}.lora_linear_layer.up.weight`, [4, 2], up],
      ],
      1,
      "diffusers",
    ],
    [
      "PEFT in diffusers",
      [
        [`unet.${q}.lora_A.weight`, [2, 4]],
        [`unet.${q}.lora_B.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
    [
      "PEFT",
      [
        [`base_model.model.${q}.lora_A.default.weight`, [2, 4]],
        [`base_model.model.${q}.lora_B.default.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
    [
      "ComfyUI",
      [
        [`diffusion_model.${q}.lora_A.weight`, [2, 4]],
        [`diffusion_model.${q}.lora_B.weight`, [4, 2], up],
      ],
      1,
      "peft",
    ],
  ];
  test.each(cases)("%s", async (_, specs, scale, format) => {
    const adapter = await importSpecs(specs);
    expect(adapter.format).toBe(format);
    expect(adapter.layers).toEqual([{ component: "unet", module: q, rank: 2, down, up: scaled(up, scale) }]);
    expect(adapter.report.unmatched).toEqual([]);
    expect(adapter.report.mismatched).toEqual([]);
    expect(adapter.report).toMatchObject({ rankMin: 2, rankMax: 2 });
    expect(reported(adapter)).toEqual(specs.map(([key]) => key).sort());
  });

  test("attention outputs of diffusers' processors", async () => {
    const name = `unet.${block}.attn1.processor.to_out_lora`;
    const adapter = await importSpecs([
      [`${name}.down.weight`, [1, 4]],
      [`${name}.up.weight`, [4, 1]],
    ]);
    expect(adapter.layers.map(({ module }) => module)).toEqual([`${block}.attn1.to_out.0`]);
  });
});
