// Trains the pocket model's tasks "sticker", "portrait" and "transform" as they are shipped in models/pocket/adapters.
// Usage: node scripts/pocket-tasks/train.mjs DATA OUT [TASK ...]      DATA: what build-data.mjs wrote
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const quad = fileURLToPath(new URL("../../packages/quad/bin/quad.js", import.meta.url));
const model = fileURLToPath(new URL("../../models/pocket", import.meta.url));
const [data, out, ...wanted] = process.argv.slice(2);
if (!out) {
  console.error("usage: node scripts/pocket-tasks/train.mjs DATA OUT [TASK ...]");
  process.exit(2);
}

const common = ["--rank", "8", "--batch", "16", "--seed", "0", "--threads", "1", "--validate-every", "100"];
/** The keys and values of the text stay the base's, so that it keeps its words. */
const keepText = ["--layers", "^(?!time_emb)(?!.*time_emb_proj)(?!.*attn2\\.to_[kv])"];
/** "sketch" has learnt to look at the picture it is given; the base looks only at what surrounds a mask. */
const fromSketch = ["--layers", "attention,feed-forward,convolutions", "--initial", "sketch"];

const runs = [
  {
    task: "sticker",
    file: "sticker.safetensors",
    options: [...keepText, "--steps", "700", "--learning-rate", "0.002", "--flip"],
  },
  {
    task: "portrait",
    file: "portrait",
    options: [...fromSketch, "--steps", "3200", "--learning-rate", "0.003", "--flip", "--format", "peft"],
  },
  {
    task: "transform",
    file: "transform.safetensors",
    // Not mirrored: the light of "3d style" comes from the left.
    options: [...fromSketch, "--steps", "4000", "--learning-rate", "0.003"],
  },
];

for (const { task, file, options } of runs) {
  if (wanted.length > 0 && !wanted.includes(task)) continue;
  const pictures = ["--pairs", join(data, task, "train"), "--validation", join(data, task, "held-out")];
  const more = [...pictures, ...common, ...options, "--out", join(out, file)];
  const { status } = spawnSync(process.execPath, [quad, "train", model, ...more], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
