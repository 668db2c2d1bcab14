import { join } from "node:path";
import type { HashCache } from "./hash-tree.ts";
import { keyOf } from "./results.ts";
import type { AnyStage, Json, Stage } from "./stage.ts";

/** A file or folder from outside: a path for the stage, its contents for the key. */
export interface FileReference {
  readonly $file: string;
  readonly contents: Json;
}

/** A path in the result of an earlier step. */
export interface ResultReference {
  readonly $result: string;
  readonly path: string;
}

/** An input with references in place of paths. */
export type Planned<T> =
  | (T extends string ? T | FileReference | ResultReference : never)
  | (T extends readonly (infer Item)[] ? readonly Planned<Item>[] : never)
  | (T extends string | readonly unknown[]
      ? never
      : T extends object
        ? { readonly [Key in keyof T]: Planned<T[Key]> }
        : T);

/** What a step needs of the machine while it runs. */
export interface Needs {
  /** Bytes. */
  memory: number;
  threads: number;
}

/** One run of a stage. */
export interface Step {
  /** For people, and for references from later steps: `record flat`. */
  readonly label: string;
  readonly stage: AnyStage;
  /** JSON with references. */
  readonly input: Json;
  /** Labels of the steps whose results it takes. */
  readonly after: readonly string[];
  /** Steps that say what they need may run beside others; any other has the machine for itself. */
  readonly needs?: Needs;
  /** How many units its progress counts: steps of one stage that say so are shown as one. */
  readonly units?: number;
}

/** Steps and what they take from each other. Some can only be planned when others are done: {@link Plan.when}. */
export class Plan {
  readonly #steps = new Map<string, Step>();
  readonly #keys = new Map<string, string>();
  readonly #extensions: { after: string; what: string; extend: (folder: string) => Promise<void> }[] = [];

  /** In the order in which they were added; a step comes after those that it takes results from. */
  get steps(): readonly Step[] {
    return [...this.#steps.values()];
  }

  /** What is not planned yet, and the step that it waits for. */
  get extensions(): readonly { after: string; what: string; extend: (folder: string) => Promise<void> }[] {
    return this.#extensions;
  }

  /** Adds a step. @returns what makes references into its result */
  add<Input>(
    label: string,
    stage: Stage<Input>,
    input: Planned<Input>,
    options: Pick<Step, "needs" | "units"> = {},
  ): (path: string) => ResultReference {
    if (this.#steps.has(label)) throw new Error(`there are two steps "${label}"`);
    const after = new Set<string>();
    mapReferences(input as Json, (reference) => {
      if ("$result" in reference) after.add(reference.$result);
      return null;
    });
    for (const needed of after) {
      if (!this.#steps.has(needed)) throw new Error(`step "${label}" comes before "${needed}", which it takes from`);
    }
    this.#steps.set(label, {
      label,
      stage: stage as unknown as AnyStage,
      input: input as Json,
      after: [...after],
      ...options,
    });
    return (path) => ({ $result: label, path });
  }

  /**
   * Plans further when a step is done, from its result.
   * @param what - what the rest is, for people
   */
  when(after: string, what: string, extend: (folder: string) => Promise<void>): void {
    this.#extensions.push({ after, what, extend });
  }

  /** A step's key: a hash of its stage, its input, the contents of its files and the keys of the steps it takes from. */
  keyOf(label: string): string {
    const known = this.#keys.get(label);
    if (known !== undefined) return known;
    const { stage, input } = this.#steps.get(label)!;
    const hashed = mapReferences(input, (reference) =>
      "$file" in reference
        ? { contents: reference.contents }
        : { key: this.keyOf(reference.$result), path: reference.path },
    );
    const key = keyOf(stage.name, stage.version, hashed);
    this.#keys.set(label, key);
    return key;
  }

  /** A step's input as its stage takes it. @param folderOf - where the results of earlier steps are */
  inputOf(label: string, folderOf: (label: string) => string): Json {
    return mapReferences(this.#steps.get(label)!.input, (reference) =>
      "$file" in reference ? reference.$file : join(folderOf(reference.$result), reference.path),
    );
  }
}

/** A reference to a file or folder from outside. */
export async function fileReference(path: string, hashes: HashCache): Promise<FileReference> {
  return { $file: path, contents: (await hashes.hash(path)) as Json };
}

function mapReferences(value: Json, replace: (reference: FileReference | ResultReference) => Json): Json {
  if (Array.isArray(value)) return value.map((item) => mapReferences(item, replace));
  if (value === null || typeof value !== "object") return value;
  const object = value as { readonly [key: string]: Json | undefined };
  if ("$file" in object || "$result" in object) return replace(object as never);
  return Object.fromEntries(
    Object.entries(object)
      .filter(([, item]) => item !== undefined)
      .map(([key, item]) => [key, mapReferences(item as Json, replace)]),
  );
}
