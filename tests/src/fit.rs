//! Least squares, for costs that several things add to.

/// The factors by which the columns of `rows` add up to `values` best. A column that says nothing which those before it
/// do not say gets zero.
pub fn least_squares<const N: usize>(rows: &[[f64; N]], values: &[f64]) -> [f64; N] {
    // The normal equations, each with its right side; their matrix is positive, so that they need no pivoting.
    let product = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
    let right = |i: usize| rows.iter().zip(values).map(|(row, value)| row[i] * value).sum::<f64>();
    let mut equations: [([f64; N], f64); N] =
        std::array::from_fn(|i| (std::array::from_fn(|j| product(i, j)), right(i)));
    let mut known = [false; N];
    for column in 0..N {
        let (pivot, value) = equations[column];
        known[column] = pivot[column] > 1e-9 * product(column, column);
        if !known[column] {
            continue;
        }
        for (index, (left, right)) in equations.iter_mut().enumerate() {
            let factor = if index == column { 0.0 } else { left[column] / pivot[column] };
            left.iter_mut().zip(pivot).for_each(|(to, from)| *to -= factor * from);
            *right -= factor * value;
        }
    }
    std::array::from_fn(|i| if known[i] { equations[i].1 / equations[i].0[i] } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_found_again() {
        let rows = [[1.0, 0.0, 5.0, 0.0], [2.0, 0.0, 1.0, 1.0], [4.0, 0.0, 2.0, 0.0], [1.0, 0.0, 1.0, 3.0]];
        let values = rows.map(|[a, _, c, d]| 8.0 * a + 3.0 * c - 0.5 * d);
        let found = least_squares(&rows, &values);
        for (found, true_one) in found.iter().zip([8.0, 0.0, 3.0, -0.5]) {
            assert!((found - true_one).abs() < 1e-9, "{found} for {true_one}");
        }
    }
}
