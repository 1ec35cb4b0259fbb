// Lists of which only the visible part is in the document.

import { Component, html } from "/page/preact.js";

const MARGIN = 400; // pixels above and below that are rendered as well

/**
 * A scrolled region whose content has the given height, of which `render(top, bottom)` gives a part.
 *
 * With `isFollowing`, the region stays at its end as it grows, until the reader scrolls up.
 */
export class Scroller extends Component {
  componentDidMount() {
    this._isAtEnd = this.props.isFollowing;
    this._observer = new ResizeObserver(() => this.forceUpdate());
    this._observer.observe(this.base);
    this.componentDidUpdate();
  }

  componentDidUpdate() {
    if (this._isAtEnd) this.base.scrollTop = this.props.height;
  }

  componentWillUnmount() {
    this._observer.disconnect();
  }

  /** Scroll to a place, in pixels. */
  scrollTo(top) {
    this._isAtEnd = false;
    this.base.scrollTop = top;
    this.base.focus();
  }

  render({ label, height, render, role = "region", class: name = "" }) {
    const top = this._isAtEnd && this.base ? height - this.base.clientHeight : (this.base?.scrollTop ?? 0);
    const bottom = top + (this.base?.clientHeight ?? 0);
    const onScroll = () => {
      const { scrollTop, clientHeight, scrollHeight } = this.base;
      this._isAtEnd = this.props.isFollowing && scrollTop + clientHeight > scrollHeight - 40;
      this.forceUpdate();
    };
    return html`<div class="scroller ${name}" role=${role} aria-label=${label} tabindex="0" onScroll=${onScroll}>
      <div class="content" role="presentation" style=${{ height: `${height}px` }}>${render(top - MARGIN, bottom + MARGIN)}</div>
    </div>`;
  }
}

/** Return the index of the last of some ascending numbers that is at most a number, or 0. */
export function lastAtMost(numbers, number) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= number) low = middle + 1;
    else high = middle;
  }
  return Math.max(low - 1, 0);
}
