// Training pictures for the pocket model's tasks "sticker", "portrait" and "transform", from emoji sets on npm.
// Usage: node scripts/pocket-tasks/build-data.mjs OUT
// Writes OUT/TASK/train and OUT/TASK/held-out in the layout of `quad train`; the packages go to OUT/packages.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { addBackdrop, addStickerBorder, fitted, greyed, onWhite, savePicture } from "./pictures.mjs";

/** The base was trained on Noto Emoji (Apache-2.0); Twemoji is CC BY 4.0, Fluent Emoji MIT. */
const packages = {
  "emoji-datasource-google": "16.0.0",
  "emoji-datasource-twitter": "16.0.0",
  "@lobehub/fluent-emoji-3d": "1.1.0",
};
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
await installPackages();
const emoji = JSON.parse(await readFile(join(modules, "emoji-datasource-google", "emoji.json"), "utf8"))
  .filter(({ category, has_img_google: drawn }) => drawn && categories.includes(category))
  .sort((a, b) => a.sort_order - b.sort_order)
  .map(describe);

const counts = {};
const captions = {};
for (const task of ["sticker", "portrait", "transform"]) await rm(join(out, task), { recursive: true, force: true });
for (const { code, caption, base, flat, solid } of emoji) {
  const shown = await onWhite(base, 60);
  await add("sticker", code, code, caption, { target: addStickerBorder(await fitted(base, 48)) });
  await add("transform", code, `${code}-grey`, "make it grey", { input: shown, target: greyed(shown) });
  if (flat) {
    await add("transform", code, `${code}-flat`, "flat style", { input: shown, target: await onWhite(flat, 60) });
  }
  if (!solid) continue;
  await add("transform", code, `${code}-3d`, "3d style", { input: shown, target: await onWhite(solid, 62) });
  await add("portrait", code, code, "studio portrait", { input: shown, target: addBackdrop(await fitted(solid, 54)) });
}
for (const [folder, texts] of Object.entries(captions)) {
  await writeFile(join(folder, "captions.json"), `${JSON.stringify(texts, null, 1)}\n`);
}
for (const [task, { train, held }] of Object.entries(counts)) {
  console.log(`${task}: ${train} examples to train on, ${held} held out`);
}

async function installPackages() {
  const wanted = Object.entries(packages).filter(([name]) => !existsSync(join(modules, name)));
  if (wanted.length === 0) return;
  const folder = dirname(modules);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "private": true }\n');
  const specifiers = wanted.map(([name, version]) => `${name}@${version}`);
  execFileSync("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", ...specifiers], {
    cwd: folder,
    stdio: "inherit",
  });
}

/** Paths of one emoji in all styles, and the caption that the base was trained with: name and subgroup. */
function describe({ unified, image, name, subcategory, has_img_twitter: hasFlat }) {
  const code = unified.toLowerCase();
  const solid = [code, code.replace(/-fe0f$/, "")]
    .map((file) => join(modules, "@lobehub/fluent-emoji-3d/assets", `${file}.webp`))
    .find(existsSync);
  return {
    code: code.replace(/-fe0f$/, ""),
    caption: `${name} ${subcategory}`.toLowerCase().replaceAll(/[^a-z0-9]+/g, " "),
    base: join(modules, "emoji-datasource-google/img/google/64", image),
    flat: hasFlat ? join(modules, "emoji-datasource-twitter/img/twitter/64", image) : null,
    solid: solid ?? null,
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
