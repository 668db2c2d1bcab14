/** What goes into a report besides the evaluation. */
export interface ReportOptions {
  /** HTML file to write. */
  out: string;
  /** The bundle's `profile.json`. */
  profile?: string;
  /** Curve, benchmark and ablation files, or folders that hold some. */
  include?: readonly string[];
}
