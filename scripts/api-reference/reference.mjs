// What the packages export, read from their sources with TypeDoc.
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
 * @returns {Promise<{ problems: string[], write: () => Promise<void> }>} problems: exports without a docstring, and docstrings
 *   that name a parameter or an export that does not exist
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
  return { problems, write: () => app.generateOutputs(project) };
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
