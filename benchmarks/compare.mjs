/**
 * Sets new results against old ones. A figure is worse when it grew by more than its tolerance; where it was 0, by anything.
 * @param {Record<string, import("./harness.mjs").Result>} before
 * @param {Record<string, import("./harness.mjs").Result>} after
 * @param {number} tolerance share, for figures without their own
 */
export function compareResults(before, after, tolerance) {
  const rows = [];
  for (const [benchmark, { figures }] of Object.entries(after)) {
    for (const figure of figures) {
      const old = before[benchmark]?.figures.find(({ name }) => name === figure.name);
      if (!old || old.informative || figure.informative) continue;
      const ratio = old.value === 0 ? (figure.value === 0 ? 1 : Number.POSITIVE_INFINITY) : figure.value / old.value;
      const allowed = 1 + (figure.tolerance ?? tolerance);
      rows.push({
        benchmark,
        name: figure.name,
        unit: figure.unit,
        old: old.value,
        new: figure.value,
        ratio,
        isWorse: ratio > allowed,
      });
    }
  }
  return rows;
}
