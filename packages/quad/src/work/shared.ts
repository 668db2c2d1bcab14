import type { Disposable } from "./stage.ts";

/** Keeps what consecutive pieces of work of one kind share, see `StageContext.share`. */
export class Shared {
  #kind: string | undefined;
  readonly #items = new Map<string, Promise<Disposable>>();

  /** What work of a kind shares; work of another kind ends what was shared before. */
  async for(kind: string): Promise<<T extends Disposable>(key: string, open: () => Promise<T>) => Promise<T>> {
    if (kind !== this.#kind) await this.dispose();
    this.#kind = kind;
    return <T extends Disposable>(key: string, open: () => Promise<T>) => {
      const known = this.#items.get(key) ?? open();
      this.#items.set(key, known);
      return known as Promise<T>;
    };
  }

  async dispose(): Promise<void> {
    const items = [...this.#items.values()];
    this.#items.clear();
    for (const item of items) await (await item.catch(() => undefined))?.dispose();
  }
}
