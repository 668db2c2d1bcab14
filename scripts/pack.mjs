// Packs all packages as a registry takes them: node scripts/pack.mjs [FOLDER], by default packed/.
// They are built from their sources in a folder of its own, so that no tarball has files of sources that have gone.
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const root = fileURLToPath(new URL("..", import.meta.url));
// npm is a script on Windows, which wants a shell.
const shell = process.platform === "win32";

/** Folders of the packages, in the order in which they are built and published. */
export const packages = ["base", "onnx", "runtime", "quad"];

/**
 * Builds and packs every package.
 * @param {string} out folder for the tarballs; made where there is none
 * @returns {Promise<string[]>} paths of the tarballs, in the order of {@link packages}
 */
export async function packAll(out) {
  await mkdir(out, { recursive: true });
  const folder = await mkdtemp(join(tmpdir(), "quad-pack-"));
  try {
    await copySources(folder);
    const compiler = join(root, "node_modules/typescript/bin/tsc");
    const projects = packages.map((name) => join("packages", name));
    await run(process.execPath, [compiler, "-b", ...projects], { cwd: folder });
    const tarballs = [];
    for (const project of projects) {
      const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", resolve(out)], {
        cwd: join(folder, project),
        shell,
      });
      tarballs.push(join(out, filenameOf(JSON.parse(stdout))));
    }
    return tarballs;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Sources, and dependencies as links: but for the packages themselves, which have to be those of this folder. */
async function copySources(folder) {
  await cp(join(root, "tsconfig.base.json"), join(folder, "tsconfig.base.json"));
  const leftOut = new Set(["dist", "node_modules", "tsconfig.tsbuildinfo"]);
  for (const name of packages) {
    const filter = (path) => !leftOut.has(basename(path));
    await cp(join(root, "packages", name), join(folder, "packages", name), { recursive: true, filter });
  }
  const modules = join(folder, "node_modules");
  await mkdir(join(modules, "@quad-lora"), { recursive: true });
  for (const entry of await readdir(join(root, "node_modules"))) {
    if (entry !== "@quad-lora" && entry !== "quad-lora" && !entry.startsWith("."))
      await symlink(join(root, "node_modules", entry), join(modules, entry), "junction");
  }
  for (const name of packages) {
    const link = name === "quad" ? "quad-lora" : join("@quad-lora", name);
    await symlink(join(folder, "packages", name), join(modules, link), "junction");
  }
}

/** npm's report is a list, and from npm 12 on an object by package name. */
function filenameOf(report) {
  return Object.values(report)[0].filename.replace(/^@/, "").replaceAll("/", "-");
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  for (const path of await packAll(process.argv[2] ?? "packed")) console.log(path);
}
