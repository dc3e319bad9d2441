/** Call more when the host calls a method of one of its objects. */

/**
 * @param {object} object
 * @param {string} method that the object has, or that the host would call
 * @param {(...values: *[]) => void} after called behind it with the same values
 */
export function chain(object, method, after) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    after(...values);
    return result;
  };
}
