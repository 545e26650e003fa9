// Where the boxes of the picture stand, and how lines go between them: around the coordinator; in rows where they are many, so that each can be read;
// in one column where there is no width.

export const WIDTH = 152, HEIGHT = 66;
const MOST_AROUND = 8, NEAR = 50, AROUND = 34, ROW = 104, COLUMNS = 4, WORDS = 60;

/** A layout: `{kind, centre, spots, width, height}`, `spots` in the order of the boxes. */
export const placed = (count, isNarrow) => (isNarrow ? below : count > MOST_AROUND ? rows : around)(count);

/** Places on an ellipse that grows with the number of boxes, the first one at the left. */
function around(count) {
  const rx = Math.max(210, count * 42), ry = count < 3 ? 0 : Math.max(112, count * 25);
  const centre = { x: rx + WIDTH / 2 + 8, y: ry + HEIGHT / 2 + (count < 3 ? 50 : 26) };
  const spots = Array.from({ length: count }, (_, index) => {
    const angle = Math.PI + (2 * Math.PI * index) / count;
    return { x: centre.x + rx * Math.cos(angle), y: centre.y + ry * Math.sin(angle) };
  });
  return { kind: "around", centre, spots, width: 2 * centre.x, height: 2 * centre.y };
}

/** Places in rows, every other one from right to left, so that who follows is a neighbour; the coordinator on top. */
function rows(count) {
  const column = WIDTH + 70, width = COLUMNS * column + 10;
  const spots = Array.from({ length: count }, (_, index) => {
    const row = Math.floor(index / COLUMNS), at = index % COLUMNS;
    return { x: 50 + WIDTH / 2 + column * (row % 2 ? COLUMNS - 1 - at : at), y: 92 + ROW * row };
  });
  return { kind: "rows", centre: { x: width / 2, y: 22 }, spots, width, height: spots.at(-1).y + HEIGHT / 2 + 24 };
}

/** Places one below the other, the coordinator on top. */
function below(count) {
  const x = 10 + WIDTH / 2;
  const spots = Array.from({ length: count }, (_, index) => ({ x, y: 100 + ROW * index }));
  return { kind: "below", centre: { x, y: 22 }, spots, width: 360, height: 100 + ROW * count - 55 };
}

/** A line, and where its words stand: outside of the ring, so that they are not in the way of others. */
export function way(from, to, { kind, centre }) {
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  const straight = `M${from.x} ${from.y}L${to.x} ${to.y}`;
  if (kind === "rows") return acrossRows(from, to, middle, straight, centre);
  if (kind === "below") {
    const gap = Math.abs(from.y - to.y);
    if (gap < ROW + 1) return { d: straight, x: middle.x + 10, y: middle.y, anchor: "start" };
    const right = from.x + WIDTH / 2, bend = right + Math.max(140, Math.min(170, gap / 3));
    return { d: `M${right} ${from.y}Q${bend} ${middle.y} ${right} ${to.y}`, x: (right + bend) / 2 + 6, y: middle.y, anchor: "start" };
  }
  const dx = middle.x - centre.x, dy = middle.y - centre.y, far = Math.hypot(dx, dy);
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  if (far < NEAR && from !== centre && to !== centre) { // it goes around the coordinator, below it
    const side = Math.sign(to.x - from.x) || 1, down = { x: (-side * (to.y - from.y)) / length, y: (side * (to.x - from.x)) / length };
    const bend = { x: middle.x + 2 * AROUND * down.x, y: middle.y + 2 * AROUND * down.y };
    return { d: `M${from.x} ${from.y}Q${bend.x} ${bend.y} ${to.x} ${to.y}`, x: (middle.x + bend.x) / 2, y: (middle.y + bend.y) / 2 + 20, anchor: "middle" };
  }
  if (Math.abs(to.y - from.y) < HEIGHT && Math.abs(to.x - from.x) > WIDTH + WORDS) return { d: straight, x: middle.x, y: middle.y, anchor: "middle" }; // between the boxes
  const anchor = far < 1 || Math.abs(dx) < 0.4 * far ? "middle" : dx > 0 ? "start" : "end";
  const out = far < 1 ? { x: 0, y: -16 } : { x: (10 * dx) / far, y: (20 * dy) / far };
  return { d: straight, x: middle.x + out.x, y: middle.y + out.y, anchor };
}

/** Neighbours have a straight line; the others one that bends, which does not lie under the boxes between them. */
function acrossRows(from, to, middle, straight, centre) {
  const dx = Math.abs(from.x - to.x), dy = Math.abs(from.y - to.y);
  if (from === centre || to === centre || dx + dy < WIDTH + ROW) return { d: straight, x: middle.x, y: middle.y, anchor: "middle" };
  const bend = { x: middle.x + (dx < WIDTH ? -WIDTH / 2 - 60 : 0), y: middle.y + (dx < WIDTH ? 0 : ROW / 2) };
  return { d: `M${from.x} ${from.y}Q${bend.x} ${bend.y} ${to.x} ${to.y}`, x: (middle.x + bend.x) / 2, y: (middle.y + bend.y) / 2, anchor: "middle" };
}
