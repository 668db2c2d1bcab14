import { parseSafetensors } from "@quad-lora/base";
import { adapterMetadata, readOnnxAdapter, type Slot, type SlotsFile } from "@quad-lora/runtime";
import { describe, expect, test } from "vitest";
import { hashBytes } from "../files/hash.ts";
import type { Profile } from "../records/profile.ts";
import { policySchema } from "../settings/policy.ts";
import { type EncodingFrame, encodeForBundle } from "./encode-adapter.ts";

const linear = (name: string, component = "unet"): Slot => ({
  ...{ name, kind: "matmul", inFeatures: 3, outFeatures: 2 },
  ...{ inputA: `${component}.${name}.lora_A`, shapeA: [3, "rank"] },
  ...{ inputB: `${component}.${name}.lora_B`, shapeB: ["rank", 2] },
});

function frameOf(rank: SlotsFile["rank"]): EncodingFrame {
  const slots: SlotsFile = {
    format: "quad-slots",
    version: 1,
    rank,
    components: {
      unet: { strengthInput: "unet.lora_strength", elementType: "int8", slots: [linear("one"), linear("two")] },
      text_encoder: { strengthInput: "text_encoder.lora_strength", slots: [linear("words", "text_encoder")] },
    },
  };
  const profile = {
    ...{ component: "unet", rank: 2, policy: policySchema.parse({ adapterBits: 8 }) },
    slots: { one: { a: 0.25, b: 0.5 }, two: { a: 0.25, b: 0.5 } },
  } as unknown as Profile;
  return { slots, profile, identity: { graph: "a".repeat(64), profile: "b".repeat(64) } };
}

/** Factors of one slot of the denoiser, on its grids, and of the text encoder. */
const adapter = {
  rank: 1,
  source: "/somewhere/style.safetensors",
  tensors: new Map([
    ["unet.one.lora_A", Float32Array.of(0.5, -1, 2.25)],
    ["unet.one.lora_B", Float32Array.of(3, -0.5)],
    ["text_encoder.words.lora_A", Float32Array.of(0.1, 0.2, 0.3)],
    ["text_encoder.words.lora_B", Float32Array.of(0.4, 0.5)],
  ]),
};

describe("an adapter for a bundle", () => {
  test("has codes for the denoiser and its own values for the rest, and says whose they are", async () => {
    const frame = frameOf({ kind: "dynamic" });
    const { files, record } = await encodeForBundle("style", adapter, frame, { align: false, withoutSlot: ["lost"] });
    const bytes = files.get("style.safetensors")!;
    const { tensors, metadata } = parseSafetensors(bytes, "style");
    const values = ({ name }: { name: string }, array: Int8ArrayConstructor | Float32ArrayConstructor) => [
      ...new array(tensors.get(name)!.bytes.slice().buffer),
    ];
    expect(values({ name: "unet.one.lora_A" }, Int8Array)).toEqual([2, -4, 9]);
    expect(values({ name: "unet.one.lora_B" }, Int8Array)).toEqual([6, -1]);
    expect(values({ name: "text_encoder.words.lora_B" }, Float32Array)).toEqual([...Float32Array.of(0.4, 0.5)]);
    expect(tensors.has("unet.two.lora_A")).toBe(false);
    expect(metadata).toEqual({
      [adapterMetadata.rank]: "1",
      [adapterMetadata.graph]: frame.identity.graph,
      [adapterMetadata.profile]: frame.identity.profile,
      "quad.source": "style.safetensors",
    });
    expect(record).toMatchObject({
      name: "style",
      source: "style.safetensors",
      rank: 1,
      slots: 2,
      withoutSlot: ["lost"],
    });
    expect(record.files["style.safetensors"]).toEqual({ sha256: hashBytes(bytes), bytes: bytes.byteLength });
    // On the grid nothing is lost.
    expect(record.fit).toMatchObject({ productSqnr: null, alignmentError: 0, clipped: 0 });
  });

  test("has in ONNX Runtime's format all inputs of the graph, at its rank where that is fixed", async () => {
    const { files } = await encodeForBundle("style", adapter, frameOf({ kind: "fixed", rank: 3 }), { align: false });
    const { parameters, modelVersion } = readOnnxAdapter(files.get("style.onnx_adapter")!, "style.onnx_adapter");
    expect(modelVersion).toBe(0xaaaaaaa);
    const shown = new Map(
      parameters.map(({ name, dataType, dims, data }) => [name, { dataType, dims, data: [...data] }]),
    );
    expect([...shown.keys()].sort()).toEqual(
      ["one", "two"]
        .flatMap((name) => [`unet.${name}.lora_A`, `unet.${name}.lora_B`])
        .concat("unet.lora_strength", "text_encoder.lora_strength")
        .concat("text_encoder.words.lora_A", "text_encoder.words.lora_B")
        .sort(),
    );
    const signed = (...codes: number[]) => [...new Uint8Array(Int8Array.from(codes).buffer)];
    expect(shown.get("unet.one.lora_A")).toEqual({
      ...{ dataType: "int8", dims: [3, 3] },
      data: signed(2, 0, 0, -4, 0, 0, 9, 0, 0),
    });
    expect(shown.get("unet.two.lora_B")).toEqual({ dataType: "int8", dims: [3, 2], data: new Array(6).fill(0) });
    const ones = [...new Uint8Array(Float32Array.of(1, 1, 1).buffer)];
    expect(shown.get("unet.lora_strength")).toEqual({ dataType: "float32", dims: [3], data: ones });
  });

  test("is the same bytes each time, tells how far it is, and stops when it is asked to", async () => {
    const frame = frameOf({ kind: "dynamic" });
    const seen: [string, number, number][] = [];
    const [first, second] = [
      await encodeForBundle("style", adapter, frame, {
        align: true,
        onProgress: (stage, done, total) => seen.push([stage, done, total]),
      }),
      await encodeForBundle("style", adapter, frame, { align: true }),
    ];
    expect(second.files).toEqual(first.files);
    expect(seen.slice(0, 2)).toEqual([
      ["encoding style", 1, 2],
      ["encoding style", 2, 2],
    ]);
    const signal = AbortSignal.abort(new Error("stopped"));
    await expect(encodeForBundle("style", adapter, frame, { align: true, signal })).rejects.toThrow("stopped");
  });
});
