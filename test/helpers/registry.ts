import { execFile } from "node:child_process";
import { createReadStream } from "node:fs";
import { mkdtemp, readFile, rm, stat, symlink } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));

/** A version of a package: its `package.json`, and what makes its tarball. */
interface Version {
  manifest: Record<string, unknown>;
  tarball: () => Promise<string>;
}

/**
 * A package registry on 127.0.0.1 that has the given tarballs and, of all other packages, the versions that this checkout
 * has installed: npm installs from it as it does from its own, without a network.
 * @param tarballs - paths of `.tgz` files
 */
export async function serveRegistry(tarballs: readonly string[]) {
  const folder = await mkdtemp(join(tmpdir(), "quad-registry-"));
  const versions = new Map<string, Version>();
  for (const path of tarballs) {
    const { stdout } = await run("tar", ["-xzOf", path, "package/package.json"]);
    add(versions, JSON.parse(stdout), async () => path);
  }
  for (const place of await installedPlaces()) {
    const source = join(root, place);
    const manifest = await readFile(join(source, "package.json"), "utf8").then(JSON.parse, () => undefined);
    if (manifest) add(versions, manifest, () => packInstalled(source, folder));
  }

  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(request.url ?? "/").slice(1);
    try {
      const [name, version] = path.split("/-/");
      if (version !== undefined) {
        const file = await versions.get(`${name}@${version}`)!.tarball();
        response.writeHead(200, { "content-length": (await stat(file)).size });
        createReadStream(file).pipe(response);
        return;
      }
      const found = [...versions].filter(([key]) => key.slice(0, key.lastIndexOf("@")) === path);
      if (found.length === 0) response.writeHead(404).end("{}");
      else response.end(JSON.stringify(document(path, found, `http://${request.headers.host}`)));
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function add(versions: Map<string, Version>, manifest: Record<string, unknown>, tarball: Version["tarball"]): void {
  let made: Promise<string> | undefined;
  versions.set(`${manifest.name}@${manifest.version}`, { manifest, tarball: () => (made ??= tarball()) });
}

/** Folders of all installed packages, those inside of other packages, too; links are the workspace's own packages. */
async function installedPlaces(): Promise<string[]> {
  const { packages } = JSON.parse(await readFile(join(root, "package-lock.json"), "utf8"));
  return Object.keys(packages).filter((place) => place.includes("node_modules/") && !packages[place].link);
}

/** A tarball of an installed package, without compression and without what belongs to other machines. */
async function packInstalled(source: string, folder: string): Promise<string> {
  const own = await mkdtemp(join(folder, "package-"));
  await symlink(source, join(own, "package"));
  const others = ["darwin", "win32", "linux"].filter((platform) => platform !== process.platform);
  const leftOut = ["package/node_modules", ...others.map((platform) => `package/bin/napi-v*/${platform}`)];
  const file = join(own, "package.tar");
  await run("tar", [...leftOut.map((path) => `--exclude=${path}`), "-chf", file, "-C", own, "package"]);
  return file;
}

/** A package's document, as registries answer: https://github.com/npm/registry/blob/main/docs/responses/package-metadata.md */
function document(name: string, found: [string, Version][], host: string) {
  const entries = found.map(([, { manifest }]) => {
    const version = String(manifest.version);
    return [version, { ...manifest, dist: { tarball: `${host}/${name}/-/${version}` } }] as const;
  });
  return { name, "dist-tags": { latest: entries.at(-1)![0] }, versions: Object.fromEntries(entries) };
}
