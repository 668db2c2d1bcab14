import type { StageOptions } from "./progress.ts";

/** What JSON can say: a stage's input can be written down, hashed and sent to another process. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined };

/** What a stage that runs is given besides its input. */
export interface StageContext extends StageOptions {
  onWarning?: (text: string) => void;
  /**
   * Folder of the step's own that outlasts an interruption, for what it needs to go on where it stopped; gone when the result is
   * there. It need not exist.
   */
  checkpoints: string;
  /**
   * Something costly, such as an open model, that steps of one stage share as long as they follow one another; whoever runs
   * them disposes of it.
   */
  share<T extends Disposable>(key: string, open: () => Promise<T>): Promise<T>;
}

/** What can be shared by steps. */
export interface Disposable {
  dispose(): Promise<void>;
}

/** A kind of work: from a JSON input, in which files are named by absolute paths, to a folder. Same input, same bytes. */
export interface Stage<Input> {
  /** Letters, digits and dashes. */
  readonly name: string;
  /** Changes whenever the same input gives another result: results of older programs are then made again. */
  readonly version: number;
  /** Writes the result into an empty folder, which gets its name when this is done. */
  run(input: Input, folder: string, context: StageContext): Promise<void>;
  /** For stages that also write elsewhere: whether what a result stands for is still there. */
  isCurrent?(input: Input, folder: string): Promise<boolean>;
}

/** Stages as those take them who do not know their inputs. */
export type AnyStage = Stage<never>;

/** Where a step's result is, and whether it was there already. */
export interface StageResult {
  /** Folder with the artefacts. */
  folder: string;
  /** Content hash of everything that they depend on. */
  key: string;
  /** Whether an earlier run's result was used. */
  reused: boolean;
}
