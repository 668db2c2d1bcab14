// What the packages export, read from their sources with TypeDoc.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Application, Logger, LogLevel, ReflectionKind, TSConfigReader } from "typedoc";

const file = (path) => fileURLToPath(new URL(path, import.meta.url));

export const entryPoints = ["base", "onnx", "quad", "runtime"].map((name) =>
  file(`../../packages/${name}/src/index.ts`),
);

/**
 * Reads the exports of modules.
 * @param {string[]} entries TypeScript files, whose exports are the reference
 * @param {{ out?: string, tsconfig?: string }} options `out`: folder that `write` fills with one Markdown file per entry
 * @returns {Promise<{ problems: string[], write: () => Promise<void> }>} problems: exports without a docstring, docstrings
 *   that name a parameter or an export that does not exist, and signatures with types that the package does not export
 */
export async function readReference(entries, { out = file("../../docs/api"), tsconfig = file("tsconfig.json") } = {}) {
  const problems = [];
  const app = await Application.bootstrapWithPlugins(
    { ...settings, entryPoints: entries, tsconfig, outputs: markdown(out) },
    [new TSConfigReader()],
  );
  app.logger = new CollectingLogger(problems);
  const project = await app.convert();
  if (!project) return { problems, write: async () => {} };
  const modules = project.children?.filter(({ kind }) => kind === ReflectionKind.Module) ?? [];
  for (const module of modules.length > 0 ? modules : [project]) {
    // TypeDoc names a module after its path: "onnx/src".
    module.name = module.name.split("/")[0];
    for (const reflection of module.children ?? []) {
      if (isDocumented(reflection)) continue;
      const kind = ReflectionKind.singularString(reflection.kind).toLowerCase();
      problems.push(`${module.name}: ${kind} ${reflection.name} has no docstring`);
    }
  }
  app.validate(project);
  const json = app.serializer.projectToObject(project, file("../.."));
  const all = modules.length > 0 ? json.children : [json];
  const exports = new Set(all.flatMap(({ children = [] }) => children.map(({ id }) => id)));
  for (const module of all) problems.push(...typesNotExported(module, exports));
  return { problems, write: () => app.generateOutputs(project) };
}

/** Keys of TypeDoc's JSON that tell of other types than those of a signature. */
const relations = new Set(["extendedBy", "extendedTypes", "implementedBy", "inheritedFrom", "overwrites"]);
/** Types of constructors that only Quad itself calls. */
const ownTypes = new Set(["Component", "PipelineParts"]);

/**
 * Types of Quad's packages that appear in a module's signatures, and that who imports the module cannot name: with a strict
 * package manager an application has no access to its dependencies' dependencies.
 * @param {object} module TypeDoc's JSON of the module
 * @param {Set<number>} exports what any of the modules exports
 * @returns {string[]} one sentence per type
 */
function typesNotExported(module, exports) {
  const exported = new Set(module.children?.map(({ name }) => name));
  const missing = new Map();
  const visit = (part, place) => {
    if (typeof part !== "object" || part === null) return;
    if (part.type === "reference" && !exported.has(part.name.split(".")[0]) && isShared(part, exports)) {
      if (!missing.has(part.name)) missing.set(part.name, place);
    }
    // `typeof value` and base classes do not have to be named to be used.
    if (part.type === "query") return;
    for (const [key, value] of Object.entries(part)) {
      if (!relations.has(key)) visit(value, place);
    }
  };
  for (const child of module.children ?? []) visit(child, child.name);
  return [...missing].map(([type, place]) => `${module.name}: ${place} has the type ${type}, which is not exported`);
}

/** Whether a type is one of Quad's that its own file exports, and not an alias for the eyes of that file. */
function isShared({ name, target }, exports) {
  // A number is something in a module that was read, too.
  if (typeof target === "number") return exports.has(target);
  const { packageName, packagePath } = target ?? {};
  if (!/^(@quad-lora\/|quad-lora$)/.test(packageName ?? "") || ownTypes.has(name)) return false;
  const folder = packageName.replace("@quad-lora/", "").replace("quad-lora", "quad");
  const source = readFileSync(file(join("../../packages", folder, packagePath)), "utf8");
  return new RegExp(`^export (abstract class|class|interface|type) ${name.split(".")[0]}\\b`, "m").test(source);
}

const markdown = (path) => [{ name: "markdown", path }];

const settings = {
  plugin: ["typedoc-plugin-markdown"],
  router: "module",
  name: "API reference",
  logLevel: "Warn",
  readme: "none",
  // Types are checked by npm run typecheck.
  skipErrorChecking: true,
  excludeExternals: true,
  excludePrivate: true,
  disableSources: true,
  hidePageHeader: true,
  hideBreadcrumbs: true,
  parametersFormat: "table",
  interfacePropertiesFormat: "table",
  classPropertiesFormat: "table",
  typeAliasPropertiesFormat: "table",
  propertyMembersFormat: "table",
  typeDeclarationFormat: "table",
  typeDeclarationVisibility: "compact",
  tableColumnSettings: { hideSources: true, hideModifiers: true, leftAlignHeaders: true },
  validation: { notDocumented: false, notExported: false, invalidLink: true },
};

class CollectingLogger extends Logger {
  constructor(problems) {
    super();
    this.problems = problems;
  }
  log(message, level) {
    super.log(message, level);
    if (level >= LogLevel.Warn) this.problems.push(message.replace(/ To fix this warning.*/s, ""));
  }
}

/** Functions carry their docstring on a signature; a re-export under another name is documented where it is defined. */
function isDocumented(reflection) {
  if (reflection.kind === ReflectionKind.Reference) return true;
  if (reflection.hasComment()) return true;
  return [...(reflection.signatures ?? []), ...(reflection.type?.declaration?.signatures ?? [])].some((signature) =>
    signature.hasComment(),
  );
}
