/**
 * Told how far long work has come.
 * @param stage - what is being done, as people should read it
 * @param done - of `total`
 * @param detail - what changes on the way, such as a loss
 */
export type Progress = (stage: string, done: number, total: number, detail?: string) => void;

/** How a caller follows and stops everything that takes longer than a moment. */
export interface StageOptions {
  /** On abort the work throws the signal's reason. */
  signal?: AbortSignal;
  onProgress?: Progress;
}
