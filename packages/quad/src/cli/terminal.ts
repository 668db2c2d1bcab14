import type { Progress } from "../work/progress.ts";

/** Where the commands print: results to standard output, progress and warnings to standard error. */
export interface Terminal {
  readonly json: boolean;
  /** One object for scripts; shown only with `--json`. */
  result(value: unknown): void;
  /** Text for people; shown only without `--json`. */
  print(text: string): void;
  warn(text: string): void;
  /** A line that replaces itself: what is being done, how far, and how long it will still take. */
  progress: Progress;
  /** Ends the progress line. */
  endProgress(): void;
}

export function createTerminal(json: boolean): Terminal {
  let started = 0;
  let current = "";
  let printed = 0;
  let open = false;
  const isTerminal = process.stderr.isTTY === true;
  const close = () => {
    if (open) process.stderr.write("\n");
    open = false;
    current = "";
  };
  return {
    json,
    result: (value) => {
      if (json) process.stdout.write(`${visible(JSON.stringify(value))}\n`);
    },
    print: (text) => {
      close();
      if (!json) process.stdout.write(`${visible(text)}\n`);
    },
    warn: (text) => {
      close();
      process.stderr.write(`warning: ${visible(text).replaceAll("\n", " ")}\n`);
    },
    progress: (stage, done, total, detail) => {
      const now = performance.now();
      if (stage !== current) {
        close();
        current = stage;
        started = now;
        printed = 0;
      }
      const finished = done >= total;
      // Logs get a line every ten seconds, terminals a live one.
      if (!finished && now - printed < (isTerminal ? 100 : 10_000)) return;
      if (finished && !isTerminal && now - started < 10_000) return;
      printed = now;
      const left = done > 0 ? ((now - started) / done) * (total - done) : 0;
      const share = total > 0 ? `${Math.floor((100 * done) / total)} %` : "";
      const shown = detail ? `, ${detail}` : "";
      const text = `${visible(`${stage}: ${share}${shown}`)}${finished || left < 1000 ? "" : `, ${formatDuration(left)} left`}`;
      process.stderr.write(isTerminal ? `\r\u001b[2K${text}` : `${text}\n`);
      open = isTerminal;
    },
    endProgress: close,
  };
}

/**
 * Text with its control characters, but for line feeds, written out: names from strangers' files could command the terminal.
 */
export function visible(text: string): string {
  return text.replace(/[^\P{Cc}\n]/gu, escaped);
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** `1.2 s`, `3 min 05 s`. */
export function formatDuration(milliseconds: number): string {
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60)).padStart(2, "0")} s`;
}

/** Aligned columns; numbers to the right. The first row is the heading. */
export function formatTable(rows: readonly (readonly (string | number)[])[]): string {
  // A line feed in a name would forge a row.
  const cells = rows.map((row) => row.map((cell) => String(cell).replace(/\p{Cc}/gu, escaped)));
  const widths = cells[0].map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const isNumeric = widths.map((_, column) => rows.slice(1).every((row) => typeof row[column] === "number"));
  const line = (row: string[]) =>
    row
      .map((cell, column) => (isNumeric[column] ? cell.padStart(widths[column]) : cell.padEnd(widths[column])))
      .join("  ")
      .trimEnd();
  return [line(cells[0]), widths.map((width) => "-".repeat(width)).join("  "), ...cells.slice(1).map(line)].join("\n");
}
