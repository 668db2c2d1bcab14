import { create, toBinary } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProto_DataType,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { InferenceSession } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { clipDirectionalSimilarity, clipScore, cosineSimilarity, embedImage, embedText } from "./clip.ts";
import { fid, imageFeatures } from "./fid.ts";
import { frechetDistance } from "./frechet.ts";
import type { Image } from "./image.ts";
import { lpips } from "./lpips.ts";
import { addNoise, drawImage, sceneImage, seededRandom, uniformImage } from "./testing.ts";

type NodeSpec = [operator: string, inputs: string[], output: string, integers?: Record<string, bigint | bigint[]>];

interface ValueSpec {
  name: string;
  type?: TensorProto_DataType;
  dims: (number | string)[];
}

/** A session of ONNX Runtime over a small opset 13 graph. */
function sessionOf(inputs: ValueSpec[], nodes: NodeSpec[], outputs: ValueSpec[]): Promise<InferenceSession> {
  const valueInfo = ({ name, type = TensorProto_DataType.FLOAT, dims }: ValueSpec) => {
    const dim = dims.map((size) =>
      create(TensorShapeProto_DimensionSchema, {
        value: typeof size === "number" ? { case: "dimValue", value: BigInt(size) } : { case: "dimParam", value: size },
      }),
    );
    const tensorType = create(TypeProto_TensorSchema, {
      elemType: type,
      shape: create(TensorShapeProtoSchema, { dim }),
    });
    return create(ValueInfoProtoSchema, {
      name,
      type: create(TypeProtoSchema, { value: { case: "tensorType", value: tensorType } }),
    });
  };
  const attribute = ([name, value]: [string, bigint | bigint[]]) =>
    Array.isArray(value)
      ? create(AttributeProtoSchema, { name, ints: value, type: AttributeProto_AttributeType.INTS })
      : create(AttributeProtoSchema, { name, i: value, type: AttributeProto_AttributeType.INT });
  const graph = create(GraphProtoSchema, {
    name: "network",
    input: inputs.map(valueInfo),
    output: outputs.map(valueInfo),
    node: nodes.map(([opType, input, output, integers = {}]) =>
      create(NodeProtoSchema, {
        name: output,
        opType,
        input,
        output: [output],
        attribute: Object.entries(integers).map(attribute),
      }),
    ),
  });
  const opsetImport = [create(OperatorSetIdProtoSchema, { domain: "", version: 13n })];
  const model = create(ModelProtoSchema, { irVersion: 8n, opsetImport, graph });
  return InferenceSession.create(toBinary(ModelProtoSchema, model), { logSeverityLevel: 3, intraOpNumThreads: 1 });
}

const picture = (name: string, batch: number | string = 1): ValueSpec => ({
  name,
  dims: [batch, 3, "height", "width"],
});

/** Squared difference averaged over everything: a distance with the interface of LPIPS. */
const squaredDifference = (inputs = [picture("in0"), picture("in1")]) =>
  sessionOf(
    inputs,
    [
      ["Sub", [inputs[0].name, inputs[1].name], "difference"],
      ["Mul", ["difference", "difference"], "square"],
      ["ReduceMean", ["square"], "distance", { axes: [1n, 2n, 3n], keepdims: 1n }],
    ],
    [{ name: "distance", dims: [1, 1, 1, 1] }],
  );

/** Channel means: three features per image. */
const channelMeans = (input: ValueSpec, output: string, keepdims = 0n) =>
  sessionOf(
    [input],
    [["ReduceMean", [input.name], output, { axes: [2n, 3n], keepdims }]],
    [{ name: output, dims: keepdims ? ["batch", 3, 1, 1] : ["batch", 3] }],
  );

describe("lpips", () => {
  test("feeds both images in -1..1 and returns the network's value", async () => {
    const session = await squaredDifference();
    expect(await lpips(session, uniformImage(8, 6, 0), uniformImage(8, 6, 255))).toBeCloseTo(4, 6);
    const scene = sceneImage(12, 7);
    const noisy = addNoise(scene, 9, 1);
    const expected = scene.data.reduce((sum, value, i) => sum + ((value - noisy.data[i]) / 127.5) ** 2, 0);
    expect(await lpips(session, scene, noisy)).toBeCloseTo(expected / scene.data.length, 6);
    expect(await lpips(session, scene, scene)).toBe(0);
  });

  test("keeps rows, columns and channels where they belong", async () => {
    // The flat index of the largest difference.
    const session = await sessionOf(
      [picture("in0"), picture("in1")],
      [
        ["Sub", ["in0", "in1"], "difference"],
        ["Flatten", ["difference"], "flat", { axis: 0n }],
        ["ArgMax", ["flat"], "index", { axis: 1n, keepdims: 0n }],
        ["Cast", ["index"], "distance", { to: BigInt(TensorProto_DataType.FLOAT) }],
      ],
      [{ name: "distance", dims: [1] }],
    );
    const black = uniformImage(5, 4, 0);
    const dot = drawImage(5, 4, (x, y, c) => (x === 3 && y === 2 && c === 1 ? 200 : 0));
    expect(await lpips(session, dot, black)).toBe(1 * 20 + 2 * 5 + 3);
  });

  test("refuses graphs that do not fit", async () => {
    const image = uniformImage(8, 8, 9);
    const one = await channelMeans(picture("x"), "y");
    await expect(lpips(one, image, image)).rejects.toThrow(/LPIPS network: .*expected 2 inputs, got 1 \(x\)/);
    const fixed = await squaredDifference([
      { name: "in0", dims: [1, 3, 64, 64] },
      { name: "in1", dims: [1, 3, 64, 64] },
    ]);
    await expect(lpips(fixed, image, image)).rejects.toThrow(
      /input in0: .*expected \[1, 3, 64, 64\], got \[1, 3, 8, 8\]/,
    );
    const half = TensorProto_DataType.FLOAT16;
    const types = await sessionOf(
      [
        { ...picture("in0"), type: half },
        { ...picture("in1"), type: half },
      ],
      [["Sub", ["in0", "in1"], "distance"]],
      [{ ...picture("distance"), type: half }],
    );
    await expect(lpips(types, image, image)).rejects.toThrow(/expected float32, got float16/);
    const spatial = await sessionOf(
      [picture("in0"), picture("in1")],
      [["Sub", ["in0", "in1"], "map"]],
      [picture("map")],
    );
    await expect(lpips(spatial, image, image)).rejects.toThrow(/expected one value, got \[1, 3, 8, 8\]/);
    await expect(lpips(one, image, uniformImage(8, 9, 9))).rejects.toThrow(/differ in size/);
  });
});

describe("fid", () => {
  const random = seededRandom(11);
  const flatImages = (count: number, low: number): Image[] =>
    Array.from({ length: count }, () => {
      const colour = [0, 1, 2].map((c) => low + 20 * c + Math.floor(random() * 60));
      return drawImage(6, 5, (_x, _y, c) => colour[c]);
    });

  test("is the Frechet distance of the network's features", async () => {
    const session = await channelMeans(picture("x", "batch"), "features");
    const [a, b] = [flatImages(7, 10), flatImages(5, 90)];
    const colours = (images: Image[]) => Float64Array.from(images.flatMap((image) => [...image.data.subarray(0, 3)]));
    const expected = frechetDistance(colours(a), colours(b), 3) / 127.5 ** 2;
    expect((await fid(session, a, b, { size: 4, batchSize: 3 })) / expected).toBeCloseTo(1, 4);
    expect((await fid(session, a, b, { size: 4, range: [0, 1] })) / expected).toBeCloseTo(0.25, 4);
    expect(await fid(session, a, a, { size: 4 })).toBeLessThan(1e-5);
  });

  test("takes pooled features with trailing ones and images of any size", async () => {
    const session = await channelMeans(picture("x", "batch"), "features", 1n);
    const images = [uniformImage(9, 4, 255), uniformImage(3, 14, 0), uniformImage(20, 20, 51)];
    const { data, dim } = await imageFeatures(session, images, { size: 8, batchSize: 2, range: [0, 255] });
    expect(dim).toBe(3);
    [255, 255, 255, 0, 0, 0, 51, 51, 51].forEach((value, i) => void expect(data[i]).toBeCloseTo(value, 3));
  });

  test("refuses what gives no features", async () => {
    const session = await channelMeans(picture("x", "batch"), "features");
    await expect(imageFeatures(session, [])).rejects.toThrow(/no images/);
    await expect(imageFeatures(session, [uniformImage(4, 4, 1)], { output: "pool" })).rejects.toThrow(
      /no such output .*expected features, got pool/,
    );
    await expect(fid(session, flatImages(1, 0), flatImages(3, 0), { size: 4 })).rejects.toThrow(/at least 2 samples/);
    const map = await sessionOf([picture("x", "batch")], [["Neg", ["x"], "y"]], [picture("y", "batch")]);
    await expect(imageFeatures(map, [uniformImage(4, 4, 1)], { size: 4 })).rejects.toThrow(/got \[1, 3, 4, 4\]/);
    const single = await channelMeans({ name: "x", dims: [1, 3, 4, 4] }, "y");
    await expect(imageFeatures(single, flatImages(2, 0), { size: 4 })).rejects.toThrow(/got \[2, 3, 4, 4\]/);
    const one = await imageFeatures(single, flatImages(2, 0), { size: 4, batchSize: 1 });
    expect(one.data.length).toBe(6);
  });
});

describe("clip", () => {
  const textEncoder = (type: TensorProto_DataType, mask = false) =>
    sessionOf(
      [
        { name: "input_ids", type, dims: ["batch", "length"] },
        ...(mask ? [{ name: "attention_mask", type, dims: ["batch", "length"] }] : []),
      ],
      [
        ...(mask ? [["Mul", ["input_ids", "attention_mask"], "masked"] as NodeSpec] : []),
        ["Cast", [mask ? "masked" : "input_ids"], "text_embeds", { to: BigInt(TensorProto_DataType.FLOAT) }],
      ],
      [{ name: "text_embeds", dims: ["batch", "length"] }],
    );

  test("an image is cropped to its centre and normalised by CLIP's statistics", async () => {
    const encoder = await channelMeans(picture("pixel_values"), "image_embeds");
    const image = drawImage(40, 16, (x, _y, c) => (x < 4 || x >= 36 ? 0 : [255, 0, 51][c]));
    const embedding = await embedImage(encoder, image, { size: 16 });
    const expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (0.2 - 0.40821073) / 0.27577711];
    expected.forEach((value, i) => void expect(embedding[i]).toBeCloseTo(value, 4));
  });

  test.each([
    ["int64", TensorProto_DataType.INT64, false],
    ["int32", TensorProto_DataType.INT32, false],
    ["int64 with attention mask", TensorProto_DataType.INT64, true],
  ])("token ids go in as %s", async (_name, type, mask) => {
    const embedding = await embedText(await textEncoder(type, mask), [49406, 320, 2368, 49407]);
    expect([...embedding]).toEqual([49406, 320, 2368, 49407]);
  });

  test("scores by the angle between embeddings", () => {
    expect(clipScore([1, 0], [5, 5])).toBeCloseTo(100 * Math.SQRT1_2, 10);
    expect(clipScore([1, 2], [-2, 1])).toBeCloseTo(0, 10);
    expect(clipScore([1, 2], [-1, -2])).toBe(0);
    expect(clipScore([1, 2, 3], [2, 4, 6])).toBeCloseTo(100, 10);
    expect(cosineSimilarity([1, 2], [-1, -2])).toBeCloseTo(-1, 12);
  });

  test("a direction is taken between normalised embeddings", () => {
    // Both go from the x axis to the y axis, whatever the lengths.
    expect(clipDirectionalSimilarity([3, 0], [0, 7], [1, 0], [0, 0.1])).toBeCloseTo(1, 12);
    expect(clipDirectionalSimilarity([3, 0], [0, 7], [0, 1], [2, 0])).toBeCloseTo(-1, 12);
    // (-1, 1, 0) against (-1, 0, 1): 60 degrees.
    expect(clipDirectionalSimilarity([1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1])).toBeCloseTo(0.5, 12);
  });

  test("refuses what does not fit", async () => {
    expect(() => clipScore([1, 2], [1, 2, 3])).toThrow(/differ in length/);
    expect(() => clipScore([0, 0], [1, 2])).toThrow(/other than zero/);
    expect(() => clipDirectionalSimilarity([1, 2], [1, 2], [1, 0], [0, 1])).toThrow(/other than zero/);
    const encoder = await channelMeans(picture("pixel_values"), "image_embeds");
    await expect(embedText(encoder, [1, 2])).rejects.toThrow(/expected int64 or int32, got float32/);
    await expect(embedText(await textEncoder(TensorProto_DataType.INT64), [1.5])).rejects.toThrow(/token ids/);
    const hidden = await sessionOf(
      [picture("pixel_values")],
      [["Neg", ["pixel_values"], "hidden"]],
      [picture("hidden")],
    );
    await expect(embedImage(hidden, uniformImage(8, 8, 3), { size: 8 })).rejects.toThrow(/expected \[1, dim\]/);
  });
});
