// Training pictures for the pocket model's tasks "sticker", "portrait" and "transform", from an emoji set on npm.
// Usage: node scripts/pocket-tasks/build-data.mjs OUT
// Writes OUT/TASK/train and OUT/TASK/held-out in the layout of `quad train`; the package goes to OUT/packages.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  addStickerBorder,
  drawnOnWhite,
  fitted,
  flattened,
  greyed,
  savePicture,
  solid,
  studioPrint,
} from "./pictures.mjs";

/** Noto Emoji, on which the base was trained (artwork: Apache-2.0). */
const [set, version] = ["emoji-datasource-google", "16.0.0"];
/** What the base was trained on. */
const categories = ["Smileys & Emotion", "Animals & Nature", "Food & Drink"];
/** Kept out of all training: the demo's four subjects, and some of every kind. */
const heldOut = [
  ...["1f980", "1f436", "1f355", "1f337"],
  ...["1f600", "1f60e", "1f62e", "1f914", "1f634", "1f63a", "1f47b"],
  ...["1f431", "1f42f", "1f418", "1f427", "1f422", "1f419", "1f41e", "1f333"],
  ...["1f34e", "1f353", "1f966", "1f354", "1f366", "1f37a"],
];

const out = process.argv[2];
if (!out) {
  console.error("usage: node scripts/pocket-tasks/build-data.mjs OUT");
  process.exit(2);
}
const modules = join(out, "packages", "node_modules");
await installPackage();
const emoji = JSON.parse(await readFile(join(modules, set, "emoji.json"), "utf8"))
  .filter(({ category, has_img_google: drawn }) => drawn && categories.includes(category))
  .sort((a, b) => a.sort_order - b.sort_order)
  .map(describe);

const counts = {};
const captions = {};
for (const task of ["sticker", "portrait", "transform"]) await rm(join(out, task), { recursive: true, force: true });
for (const { code, caption, file } of emoji) {
  await add("sticker", code, code, caption, { target: addStickerBorder(await fitted(file, 54)) });
  const drawn = await fitted(file, 60);
  const input = drawnOnWhite(drawn);
  await add("portrait", code, code, "studio portrait", { input, target: studioPrint(drawn) });
  await add("transform", code, `${code}-grey`, "make it grey", { input, target: greyed(input) });
  await add("transform", code, `${code}-flat`, "flat style", { input, target: flattened(drawn) });
  await add("transform", code, `${code}-3d`, "3d style", { input, target: solid(drawn) });
}
for (const [folder, texts] of Object.entries(captions)) {
  await writeFile(join(folder, "captions.json"), `${JSON.stringify(texts, null, 1)}\n`);
}
for (const [task, { train, held }] of Object.entries(counts)) {
  console.log(`${task}: ${train} examples to train on, ${held} held out`);
}

async function installPackage() {
  if (existsSync(join(modules, set))) return;
  const folder = dirname(modules);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "private": true }\n');
  execFileSync("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", `${set}@${version}`], {
    cwd: folder,
    stdio: "inherit",
  });
}

/** An emoji's picture, and the caption that the base was trained with: name and subgroup. */
function describe({ unified, image, name, subcategory }) {
  return {
    code: unified.toLowerCase().replace(/-fe0f$/, ""),
    caption: `${name} ${subcategory}`.toLowerCase().replaceAll(/[^a-z0-9]+/g, " "),
    file: join(modules, set, "img/google/64", image),
  };
}

async function add(task, code, name, caption, { input, target }) {
  const isHeld = heldOut.includes(code);
  const folder = join(out, task, isHeld ? "held-out" : "train");
  counts[task] ??= { train: 0, held: 0 };
  counts[task][isHeld ? "held" : "train"]++;
  captions[folder] ??= {};
  captions[folder][name] = caption;
  await savePicture(join(folder, `${name}.target.png`), target);
  if (input) await savePicture(join(folder, `${name}.input.png`), input);
}
