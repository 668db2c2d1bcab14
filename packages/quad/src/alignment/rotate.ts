/** Mixing ranks: `(A R)(R^T B) = A B` for every orthogonal R. */
import { combine, jacobiSvd, largest, orthonormalize, peakOf, type RankRows, rotatePair, squaredNorm } from "./rows.ts";

/**
 * The gauge in which both factors share the singular values: `A = U sqrt(S)`, `B = sqrt(S) V^T`. Among all gauges it has
 * the least product of norms `||A|| ||B||` (their nuclear norm), hence the least rounding noise for a given peak.
 */
export function canonicalRows({ a, b }: RankRows): RankRows {
  const rank = a.length;
  const left = orthonormalize(a);
  const right = orthonormalize(b);
  // A B = sum of basisA[i] core[i][l] basisB[l]^T
  const core = Array.from({ length: rank }, (_, l) => {
    const column = new Float64Array(rank);
    for (let i = 0; i < rank; i++)
      for (let k = Math.max(i, l); k < rank; k++) column[i] += left.triangle[i][k] * right.triangle[l][k];
    return column;
  });
  const svd = jacobiSvd(core);
  const roots = svd.left.map((column) => Math.sqrt(Math.hypot(...column)));
  return {
    a: combine(left.basis, rank, (i, m) => (roots[m] === 0 ? 0 : svd.left[m][i] / roots[m])),
    b: combine(right.basis, rank, (l, m) => roots[m] * svd.right[m][l]),
  };
}

/** Peak of one side times norm of the other, for both sides: rounding noise where the peaks define the grids. */
function noiseOf(peakA: number, peakB: number, rows: RankRows, norms: { a: number; b: number }): number {
  const inFeatures = rows.a[0]?.length ?? 0;
  const outFeatures = rows.b[0]?.length ?? 0;
  return inFeatures * peakA ** 2 * norms.b + outFeatures * peakB ** 2 * norms.a;
}

/** Entries of an orthogonal matrix of near-equal magnitudes: Sylvester's Hadamard matrix, or Hartley's transform. */
function spreading(rank: number): (k: number, m: number) => number {
  const size = 1 / Math.sqrt(rank);
  if ((rank & (rank - 1)) !== 0) {
    return (k, m) => {
      const angle = (2 * Math.PI * ((k * m) % rank)) / rank;
      return size * (Math.cos(angle) + Math.sin(angle));
    };
  }
  return (k, m) => {
    let parity = 0;
    for (let bits = k & m; bits > 0; bits &= bits - 1) parity ^= 1;
    return parity ? -size : size;
  };
}

const signAttempts = 12;
/** Multiply-adds that the search for signs may spend; large factors, whose peaks differ less, get fewer attempts. */
const signBudget = 1e7;
/** The same for rotations. */
const turnBudget = 4e7;

/** Spreads every rank over all: after random signs, whose best of a few draws is kept. All ranks get alike sizes. */
export function spreadRows(rows: RankRows): RankRows {
  const rank = rows.a.length;
  const entry = spreading(rank);
  const norms = { a: squaredNorm(rows.a), b: squaredNorm(rows.b) };
  let state = 0x2545f491;
  let best = rows;
  let least = Number.POSITIVE_INFINITY;
  const perAttempt = rank * rank * ((rows.a[0]?.length ?? 0) + (rows.b[0]?.length ?? 0));
  const attempts = Math.max(1, Math.min(signAttempts, Math.floor(signBudget / perAttempt)));
  for (let attempt = 0; attempt < attempts; attempt++) {
    const signs = Array.from({ length: rank }, () => {
      // Xorshift32 (Marsaglia 2003), so that results repeat.
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return state & 1 ? -1 : 1;
    });
    const mixed: RankRows = {
      a: combine(rows.a, rank, (k, m) => signs[k] * entry(k, m)),
      b: combine(rows.b, rank, (k, m) => signs[k] * entry(k, m)),
    };
    const noise = noiseOf(largest(mixed.a.map(peakOf)), largest(mixed.b.map(peakOf)), rows, norms);
    if (noise >= least) continue;
    least = noise;
    best = mixed;
  }
  return best;
}

const angles = Array.from({ length: 15 }, (_, i) => ((i + 1) * Math.PI) / 16 - Math.PI / 2).filter(
  (angle) => angle !== 0,
);

/**
 * Lowers the peaks by rotations of two ranks at a time: the rank that holds a peak is turned against the partner, by the
 * angle, that lower the noise most; until no turn helps.
 */
export function lowerPeaks(rows: RankRows): RankRows {
  const a = rows.a.map((row) => row.slice());
  const b = rows.b.map((row) => row.slice());
  const rank = a.length;
  const norms = { a: squaredNorm(a), b: squaredNorm(b) };
  const peaksA = a.map(peakOf);
  const peaksB = b.map(peakOf);
  const perTurn = 2 * rank * angles.length * ((a[0]?.length ?? 0) + (b[0]?.length ?? 0));
  const turns = Math.min(40 * rank, Math.floor(turnBudget / Math.max(1, perTurn)));
  let noise = noiseOf(largest(peaksA), largest(peaksB), rows, norms);
  for (let turn = 0; turn < turns; turn++) {
    const holders = [peaksA.indexOf(largest(peaksA)), peaksB.indexOf(largest(peaksB))];
    let best: { first: number; second: number; angle: number } | null = null;
    for (const first of new Set(holders)) {
      for (let second = 0; second < rank; second++) {
        if (second === first) continue;
        const others = (peaks: readonly number[]) => largest(peaks.filter((_, k) => k !== first && k !== second));
        const [otherA, otherB] = [others(peaksA), others(peaksB)];
        if (noiseOf(otherA, otherB, rows, norms) >= noise) continue;
        for (const angle of angles) {
          const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
          // The peaks beyond which a turn cannot help, whatever the other side does.
          const limit = noise * (1 - 1e-6);
          const limitA = Math.sqrt((limit - noiseOf(0, otherB, rows, norms)) / noiseOf(1, 0, rows, norms));
          const peakA = Math.max(otherA, turnedPeak(a[first], a[second], cosine, sine, limitA));
          const limitB = Math.sqrt((limit - noiseOf(peakA, 0, rows, norms)) / noiseOf(0, 1, rows, norms));
          if (!(limitB > 0)) continue;
          const peakB = Math.max(otherB, turnedPeak(b[first], b[second], cosine, sine, limitB));
          const candidate = noiseOf(peakA, peakB, rows, norms);
          if (candidate >= noise * (1 - 1e-6)) continue;
          noise = candidate;
          best = { first, second, angle };
        }
      }
    }
    if (!best) break;
    const { first, second, angle } = best;
    for (const [side, peaks] of [
      [a, peaksA],
      [b, peaksB],
    ] as const) {
      rotatePair(side[first], side[second], Math.cos(angle), Math.sin(angle));
      peaks[first] = peakOf(side[first]);
      peaks[second] = peakOf(side[second]);
    }
  }
  return { a, b };
}

/** Peak of both rows after a turn; some value above the limit where the peak is. */
function turnedPeak(x: Float64Array, y: Float64Array, cosine: number, sine: number, limit: number): number {
  let peak = 0;
  for (let i = 0; i < x.length; i++) {
    const first = Math.abs(cosine * x[i] - sine * y[i]);
    const second = Math.abs(sine * x[i] + cosine * y[i]);
    const larger = first > second ? first : second;
    if (larger <= peak) continue;
    peak = larger;
    if (peak > limit) break;
  }
  return peak;
}
