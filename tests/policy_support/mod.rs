//! Random clusters with policies, and an evaluator for them that is nothing but the API's documentation.

pub(crate) mod random;
pub(crate) mod reference;
